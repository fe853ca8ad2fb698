use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::{
    identity::SpiffeId,
    pki::{crl::Reason, ledger::Holder, shift},
};

const NOW: i64 = 1_800_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(NOW + second).unwrap()
}

fn owner(uid: &str) -> Owner {
    let id = SpiffeId::parse("spiffe://contoso.example/ns/sip/server/front-end").unwrap();
    Owner { id, uid: uid.to_owned(), created: at(uid.parse().unwrap()) }
}

fn record(serial: [u8; 16], pod: u64, key: &str, now: Timestamp) -> Record {
    Record {
        serial: Serial::from_random(serial),
        holder: Holder::Pod(format!("pod-{pod}")),
        key: key.to_owned(),
        names: "n".into(),
        issuer: "aa".to_owned(),
        validity: Validity { not_before: now, not_after: shift(now, 86_400) },
        recorded: now,
        revoked: None,
    }
}

fn wanted(number: u8, key: &str) -> (Owner, Record) {
    (owner("1"), record([number; 16], u64::from(number), key, at(0)))
}

fn written(wanted: Vec<(Owner, Record)>, before: Ledger) -> (Ledger, Answers) {
    let mut intake = Intake::new(wanted, None).unwrap();
    assert_eq!(intake.next(at(0)), Next::Read);
    intake.was_read(before);
    match intake.next(at(0)) {
        Next::Write(after) => (after, intake.was_written()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_waits_together_is_written_at_once_and_each_gets_its_own_answer() {
    let (ledger, first) = written(vec![wanted(1, "a"), wanted(2, "b")], Ledger::default());
    assert_eq!(first.iter().map(|one| one.as_ref().unwrap().occasion).collect::<Vec<_>>(), [Occasion::Issued; 2]);
    let same = (owner("1"), Record { serial: Serial::from_random([9; 16]), ..wanted(1, "a").1 });
    let stolen = wanted(3, "b");
    let (ledger, second) = written(vec![same, stolen, wanted(2, "c")], ledger);
    assert_eq!(second[0], Ok(Recorded { occasion: Occasion::Repeated, ..*first[0].as_ref().unwrap() }));
    assert_eq!(second[1], Err(Unrecorded::Ledger(LedgerError::KeyReused)));
    assert_eq!(second[2].as_ref().unwrap().occasion, Occasion::Renewed);
    assert_eq!(ledger.records().len(), 3);
}

#[test]
fn who_waited_for_a_server_that_was_created_anew_is_told_so() {
    let created_anew = Err(Unrecorded::Ledger(LedgerError::CreatedAnew));
    let old = wanted(1, "a");
    let new = (owner("2"), wanted(2, "b").1);
    for (waiting, turned_away) in [(vec![old.clone(), new.clone()], 0), (vec![new, old.clone()], 1)] {
        let (ledger, answers) = written(waiting, Ledger::default());
        assert_eq!(answers[turned_away], created_anew);
        assert_eq!((ledger.records().len(), ledger.owner()), (1, Some(&owner("2"))));
        let mut late = Intake::new(vec![old.clone()], None).unwrap();
        late.next(at(0));
        late.was_read(ledger);
        assert_eq!(late.next(at(0)), Next::Answer(vec![created_anew.clone()]), "nothing is written for it");
    }
    assert!(Unrecorded::Ledger(LedgerError::CreatedAnew).may_pass(), "whoever asks comes back");
}

#[test]
fn what_a_record_takes_back_is_told_once_with_whose_it_was() {
    let (ledger, _) = written(vec![wanted(1, "a")], Ledger::default());
    let mut intake = Intake::new(vec![(owner("2"), wanted(2, "b").1)], Some(ledger)).unwrap();
    let Next::Write(after) = intake.next(at(1)) else { panic!("it is written") };
    let taken = intake.taken(&after);
    let told: Vec<_> =
        taken.iter().map(|(owner, record)| (owner.uid.as_str(), record.serial, record.revoked)).collect();
    assert_eq!(told, [("1", wanted(1, "a").1.serial, Some((at(1), Reason::ServerDeleted)))]);
    let mut next = Intake::new(vec![(owner("2"), wanted(3, "c").1)], Some(after)).unwrap();
    let Next::Write(after) = next.next(at(2)) else { panic!("it is written") };
    assert_eq!(next.taken(&after), []);
}

#[test]
fn what_is_only_remembered_answers_nothing() {
    let (ledger, _) = written(vec![wanted(1, "a")], Ledger::default());
    let mut intake = Intake::new(vec![wanted(1, "a")], Some(ledger.clone())).unwrap();
    assert_eq!(intake.next(at(1)), Next::Read, "it is read before it is answered without a write");
    intake.was_read(ledger.clone());
    assert!(matches!(intake.next(at(1)), Next::Answer(answers) if answers[0].is_ok()));
    let mut intake = Intake::new(vec![wanted(2, "b")], Some(ledger)).unwrap();
    assert!(matches!(intake.next(at(1)), Next::Write(_)), "a write proves it");
}

#[test]
fn after_five_lost_writes_everybody_is_told_to_try_again() {
    let mut intake = Intake::new(vec![wanted(1, "a")], Some(Ledger::default())).unwrap();
    for _ in 0..TRIES {
        while intake.next(at(0)) == Next::Read {
            intake.was_read(Ledger::default());
        }
        intake.was_lost();
    }
    assert_eq!(intake.next(at(0)), Next::Answer(vec![Err(Unrecorded::Conflict)]));
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.throw() % bound as u64).unwrap()
    }

    fn serial(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.throw().to_be_bytes());
        bytes[8..].copy_from_slice(&self.throw().to_be_bytes());
        bytes
    }
}

/// Who asks; which key it has, and whether its request is under way.
#[derive(Default)]
struct Client {
    key: u64,
    waits: bool,
    has: Option<Serial>,
}

/// What is under way in a replica.
struct Work {
    asked: Vec<(usize, u64)>,
    intake: Intake,
    version: u64,
    write: Option<Ledger>,
}

#[derive(Default)]
struct Replica {
    queue: VecDeque<(usize, u64, Record)>,
    remembered: Option<(u64, Ledger)>,
    work: Option<Work>,
}

struct Simulation {
    dice: Dice,
    now: i64,
    version: u64,
    data: BTreeMap<String, String>,
    replicas: [Replica; 2],
    clients: Vec<Client>,
    /// Serials that were signed, by pod and key.
    signed: BTreeMap<(usize, u64), Serial>,
    faults: bool,
}

impl Simulation {
    fn ledger(&self) -> Ledger {
        Ledger::parse(&self.data).unwrap()
    }

    fn ask(&mut self, client: usize) {
        let serial = self.dice.serial();
        let one = &mut self.clients[client];
        if one.waits || one.has.is_some() {
            return;
        }
        one.waits = true;
        let key = one.key;
        let record = record(serial, client as u64, &format!("{client}-{key}"), at(self.now));
        let replica = self.dice.below(2);
        self.replicas[replica].queue.push_back((client, key, record));
    }

    /// One step of a replica: begin, read, decide, or write.
    fn step(&mut self, number: usize) {
        let store = self.version;
        let replica = &mut self.replicas[number];
        let Some(mut work) = replica.work.take() else {
            let count = 1 + self.dice.below(8);
            let batch: Vec<_> = replica.queue.drain(..count.min(replica.queue.len())).collect();
            let wanted = batch.iter().map(|(_, _, record)| (owner("1"), record.clone())).collect();
            let (version, ledger) =
                replica.remembered.take().map_or((0, None), |(version, held)| (version, Some(held)));
            let asked = batch.iter().map(|(client, key, _)| (*client, *key)).collect();
            replica.work = Intake::new(wanted, ledger).map(|intake| Work { asked, intake, version, write: None });
            return;
        };
        if let Some(ledger) = work.write.take() {
            if work.version != store {
                work.intake.was_lost();
                replica.work = Some(work);
                return;
            }
            let fate = if self.faults { self.dice.below(8) } else { 7 };
            if fate != 0 {
                self.data = ledger.render();
                self.version += 1;
            }
            if fate <= 1 {
                // Nobody knows whether it was written: everybody who waited is told to ask again.
                return work.asked.iter().for_each(|(client, _)| self.clients[*client].waits = false);
            }
            self.replicas[number].remembered = Some((self.version, ledger));
            let answers = work.intake.was_written();
            return self.answer(&work.asked, answers);
        }
        match work.intake.next(at(self.now)) {
            Next::Read => {
                work.version = store;
                let ledger = self.ledger();
                work.intake.was_read(ledger);
                self.replicas[number].work = Some(work);
            }
            Next::Write(ledger) => {
                work.write = Some(ledger);
                self.replicas[number].work = Some(work);
            }
            Next::Answer(answers) => self.answer(&work.asked, answers),
        }
    }

    /// What is answered is signed and released, or the answer is lost and asked for again.
    fn answer(&mut self, asked: &[(usize, u64)], answers: Answers) {
        assert_eq!(asked.len(), answers.len(), "an answer for each");
        let held: BTreeSet<Serial> = self.ledger().records().iter().map(|record| record.serial).collect();
        for (&(client, key), answer) in asked.iter().zip(answers) {
            let lost = self.faults && self.dice.below(6) == 0;
            let one = &mut self.clients[client];
            one.waits = false;
            match answer {
                Ok(Recorded { serial, .. }) => {
                    assert!(held.contains(&serial), "signed without a record");
                    let before = *self.signed.entry((client, key)).or_insert(serial);
                    assert_eq!(before, serial, "one certificate for one key");
                    if !lost {
                        one.has = Some(serial);
                    }
                }
                Err(Unrecorded::Ledger(LedgerError::KeyReused)) => one.key += 1,
                Err(_) => {}
            }
        }
    }

    /// A replica dies with all that waits in it.
    fn die(&mut self, number: usize) {
        let dead = std::mem::take(&mut self.replicas[number]);
        let waited = dead.queue.iter().map(|(client, _, _)| *client);
        for client in waited.chain(dead.work.iter().flat_map(|work| work.asked.iter().map(|(client, _)| *client))) {
            self.clients[client].waits = false;
        }
    }

    /// The leader takes one certificate back.
    fn revoke(&mut self) {
        let mut ledger = self.ledger();
        let Some(serial) = ledger.records().last().map(|record| record.serial) else { return };
        ledger.revoke(&[(serial, Reason::Suspended)], at(self.now));
        self.data = ledger.render();
        self.version += 1;
    }

    fn run(&mut self) {
        for _ in 0..400 {
            let client = self.dice.below(self.clients.len());
            match self.dice.below(40) {
                0 => self.revoke(),
                1 => {
                    let dead = self.dice.below(2);
                    self.die(dead);
                }
                2 => self.now += 60,
                3..=12 => self.ask(client),
                _ => {
                    let replica = self.dice.below(2);
                    self.step(replica);
                }
            }
        }
        self.faults = false;
        for _ in 0..1_000 {
            if self.clients.iter().all(|client| client.has.is_some()) {
                return;
            }
            (0..self.clients.len()).for_each(|client| self.ask(client));
            let replica = self.dice.below(2);
            self.step(replica);
        }
        panic!("somebody never gets a certificate");
    }
}

#[test]
fn two_replicas_that_sign_at_once_lose_no_record_and_use_no_serial_twice() {
    for seed in 0..1_000 {
        let mut simulation = Simulation {
            dice: Dice(seed),
            now: 0,
            version: 0,
            data: BTreeMap::new(),
            replicas: Default::default(),
            clients: std::iter::repeat_with(Client::default).take(12).collect(),
            signed: BTreeMap::new(),
            faults: true,
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            simulation.run();
            let ledger = simulation.ledger();
            let serials: BTreeSet<Serial> = ledger.records().iter().map(|record| record.serial).collect();
            let keys: BTreeSet<&str> = ledger.records().iter().map(|record| record.key.as_str()).collect();
            assert_eq!((serials.len(), keys.len()), (ledger.records().len(), ledger.records().len()), "nothing twice");
            assert!(simulation.signed.values().all(|serial| serials.contains(serial)), "no record is lost");
            let distinct: BTreeSet<_> = simulation.signed.values().collect();
            assert_eq!(distinct.len(), simulation.signed.len(), "no serial is signed for two keys");
        }));
        assert!(outcome.is_ok(), "seed {seed}");
    }
}
