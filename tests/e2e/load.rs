//! Steady load from inside a pod, which goes on while kubectl cannot be used.

use std::fmt::Write as _;

use crate::cluster::{Place, until};

/// A program that calls the URLs in turn, `rate` a second in all, each tenth call a new connection, and writes counts.
const PROGRAM: &str = r#"
import http.client, sys, threading, time
end, rate, urls = time.time() + float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
lock, ok, bad, slow = threading.Lock(), [0], [], [0.0]
def call(host, kept, fresh):
    connection = None if fresh else kept.get(host)
    if connection is None:
        connection = http.client.HTTPConnection(host, 80, timeout=5)
    began = time.time()
    connection.request("GET", "/")
    answer = connection.getresponse()
    body = answer.read()
    took = time.time() - began
    if body != b"hello\n": raise Exception(repr(body))
    if fresh or answer.will_close:
        connection.close()
        connection = None
    if not fresh: kept[host] = connection
    return took
def work(index, count):
    kept, number, due = {}, index, time.time()
    while time.time() < end:
        host = urls[number % len(urls)]
        fresh = (number // len(urls)) % 10 == 0
        try:
            took = call(host, kept, fresh)
            with lock:
                ok[0] += 1
                slow[0] = max(slow[0], took)
        except Exception as error:
            kept.pop(host, None)
            with lock: bad.append("%.3f %s %s %r" % (time.time(), host, "new" if fresh else "kept", error))
        number += count
        due += count / rate
        time.sleep(max(0, due - time.time()))
threads = [threading.Thread(target=work, args=(index, 10)) for index in range(10)]
for one in threads: one.start()
for one in threads: one.join()
print(ok[0], len(bad), "%.3f" % slow[0])
for line in bad[:8]: print(line)
"#;

/// Load that runs in a pod.
pub(crate) struct Load<'a> {
    place: &'a Place,
    from: &'a str,
    seconds: u64,
}

/// What came of it.
pub(crate) struct Calls {
    /// Calls that were answered as they should be.
    pub(crate) ok: u64,
    /// Calls that were not.
    pub(crate) failed: u64,
    /// The slowest, and the first failures.
    pub(crate) more: String,
}

impl<'a> Load<'a> {
    /// Starts it: `rate` calls a second over `hosts` for so many seconds.
    pub(crate) fn start(place: &'a Place, from: &'a str, hosts: &[String], rate: u64, seconds: u64) -> Self {
        let mut line = String::from("cat > /tmp/load.py <<'EOF'\n");
        line.push_str(PROGRAM);
        let _ = write!(
            line,
            "EOF\nrm -f /tmp/load.out\nsetsid python3 /tmp/load.py {seconds} {rate} {} > /tmp/load.tmp 2>&1 </dev/null && true; mv /tmp/load.tmp /tmp/load.out",
            hosts.join(" ")
        );
        let started = place.run(from, &format!("cat > /tmp/load.sh <<'OUTER'\n{line}\nOUTER\nsetsid sh /tmp/load.sh >/dev/null 2>&1 </dev/null & sleep 0.2"));
        assert!(started.ok, "{}", started.err);
        Self { place, from, seconds }
    }

    /// Waits for its end.
    pub(crate) fn ends(self) -> Calls {
        let out = until(self.seconds + 60, "the load has ended", || {
            let said = self.place.run(self.from, "cat /tmp/load.out");
            if said.ok && !said.out.is_empty() { Ok(said.out) } else { Err(said.err) }
        });
        let first: Vec<&str> = out.lines().next().unwrap_or_default().split(' ').collect();
        let count =
            |index: usize| first.get(index).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{out}"));
        Calls { ok: count(0), failed: count(1), more: out }
    }
}
