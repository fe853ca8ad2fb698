//! A queue in which many of one kind do not keep others waiting: groups take turns, and within a group its sources do.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

/// What one source may have waiting.
const PER_SOURCE: usize = 16;

/// Why nothing more is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// Too many wait.
    Altogether,
    /// Too many of this source wait.
    Source,
}

/// What waits, by group (a namespace) and source (an address).
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    groups: BTreeMap<String, Group<T>>,
    /// Groups in which something waits, the next one first.
    turns: VecDeque<String>,
    by_source: BTreeMap<IpAddr, usize>,
    length: usize,
}

#[derive(Debug)]
struct Group<T> {
    lanes: BTreeMap<IpAddr, VecDeque<T>>,
    turns: VecDeque<IpAddr>,
    length: usize,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { groups: BTreeMap::new(), turns: VecDeque::new(), by_source: BTreeMap::new(), length: 0 }
    }
}

impl<T> FairQueue<T> {
    /// How many wait.
    pub(super) const fn len(&self) -> usize {
        self.length
    }

    /// Lets one more wait. Where `bound` wait already, one of the longest group gives way to a group that has less, and
    /// is answered.
    pub(super) fn push(&mut self, group: &str, source: IpAddr, one: T, bound: usize) -> Result<Option<T>, Full> {
        if self.by_source.get(&source).is_some_and(|count| *count >= PER_SOURCE) {
            return Err(Full::Source);
        }
        let mut gone = None;
        if self.length >= bound {
            let own = self.groups.get(group).map_or(0, |group| group.length);
            let longest = self.groups.iter().max_by_key(|(_, group)| group.length);
            let longest = longest.filter(|(_, longest)| longest.length > own + 1).map(|(name, _)| name.clone());
            gone = self.evict(&longest.ok_or(Full::Altogether)?);
        }
        *self.by_source.entry(source).or_default() += 1;
        self.length += 1;
        if !self.groups.contains_key(group) {
            self.turns.push_back(group.to_owned());
        }
        let new = || Group { lanes: BTreeMap::new(), turns: VecDeque::new(), length: 0 };
        let group = self.groups.entry(group.to_owned()).or_insert_with(new);
        if !group.lanes.contains_key(&source) {
            group.turns.push_back(source);
        }
        group.lanes.entry(source).or_default().push_back(one);
        group.length += 1;
        Ok(gone)
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let name = self.turns.pop_front()?;
        let group = self.groups.get_mut(&name)?;
        let source = group.turns.pop_front()?;
        let lane = group.lanes.get_mut(&source)?;
        let one = lane.pop_front()?;
        if lane.is_empty() {
            group.lanes.remove(&source);
        } else {
            group.turns.push_back(source);
        }
        self.left(&name, source);
        if self.groups.contains_key(&name) {
            self.turns.push_back(name);
        }
        Some(one)
    }

    /// The last of a group leaves. A group that gives way has others in it, so it keeps its turn.
    fn evict(&mut self, name: &str) -> Option<T> {
        let group = self.groups.get_mut(name)?;
        let source = *group.turns.back()?;
        let lane = group.lanes.get_mut(&source)?;
        let one = lane.pop_back()?;
        if lane.is_empty() {
            group.lanes.remove(&source);
            group.turns.pop_back();
        }
        self.left(name, source);
        Some(one)
    }

    fn left(&mut self, name: &str, source: IpAddr) {
        self.length -= 1;
        if let Some(group) = self.groups.get_mut(name) {
            group.length -= 1;
            if group.length == 0 {
                self.groups.remove(name);
            }
        }
        if let Some(count) = self.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u8) -> IpAddr {
        [198, 18, 0, number].into()
    }

    fn drained(queue: &mut FairQueue<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn groups_take_turns_however_many_wait_in_one() {
        let mut queue = FairQueue::default();
        for number in 1..=4 {
            queue.push("big", source(number), "big", 10).unwrap();
        }
        queue.push("small", source(9), "small", 10).unwrap();
        assert_eq!(drained(&mut queue), ["big", "small", "big", "big", "big"]);
        assert_eq!((queue.len(), queue.by_source.len(), queue.groups.len()), (0, 0, 0), "nothing is remembered");
    }

    #[test]
    fn a_source_that_floods_waits_for_itself_alone() {
        let mut queue = FairQueue::default();
        for _ in 0..PER_SOURCE {
            queue.push("shop", source(1), "flood", 100).unwrap();
        }
        assert_eq!(queue.push("shop", source(1), "flood", 100), Err(Full::Source));
        assert_eq!(queue.push("other", source(1), "flood", 100), Err(Full::Source), "under no other name either");
        queue.push("shop", source(2), "one", 100).unwrap();
        queue.push("shop", source(3), "other", 100).unwrap();
        assert_eq!(drained(&mut queue)[..3], ["flood", "one", "other"]);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut queue = FairQueue::default();
        queue.push("a", source(1), "one", 2).unwrap();
        queue.push("b", source(2), "two", 2).unwrap();
        assert_eq!(queue.push("c", source(3), "three", 2), Err(Full::Altogether));
        queue.pop();
        assert_eq!(queue.push("c", source(3), "three", 2), Ok(None));
    }

    #[test]
    fn where_it_is_full_the_longest_group_gives_way_to_a_shorter_one() {
        let mut queue = FairQueue::default();
        for (number, name) in [(1, "first"), (2, "second"), (3, "third")] {
            queue.push("big", source(number), name, 3).unwrap();
        }
        assert_eq!(queue.push("big", source(4), "fourth", 3), Err(Full::Altogether));
        assert_eq!(queue.push("small", source(5), "small", 3), Ok(Some("third")));
        assert_eq!(queue.push("small", source(6), "more", 3), Err(Full::Altogether), "two and one is fair");
        assert_eq!(drained(&mut queue), ["first", "small", "second"]);
        assert_eq!((queue.len(), queue.by_source.len(), queue.groups.len()), (0, 0, 0));
    }
}
