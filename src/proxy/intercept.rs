//! The interception rules: every TCP connection goes through the proxy, what is asked of the pod's resolvers through its
//! DNS guard, and everything else is dropped but declared UDP ports. The rules live in the pod's network namespace and
//! need no process: a dead proxy means refused.

use std::{
    fmt::Write,
    io,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    process::Command,
    time::timeout,
};

use super::sockets;
use crate::sidecar::{DNS_PORT, HEALTH_PORT, INBOUND_PORT, OUTBOUND_PORT, UID};

/// What is done with IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6 {
    /// Redirected like IPv4.
    Redirect,
    /// Dropped, where the kernel cannot redirect it or the pod has none.
    Drop,
}

/// Where resolvers listen.
const DNS: u16 = 53;

/// Documentation addresses (RFC 5737, RFC 3849): nobody is there, so only the rules can make a dial succeed.
const PROOF_V4: &str = "192.0.2.1:9";
const PROOF_V6: &str = "[2001:db8::1]:9";
/// Deadline of one dial of the proof.
const PROOF: Duration = Duration::from_secs(2);

/// So long a dropped dial is waited for.
const DROPPED: Duration = Duration::from_millis(500);

/// The rules as `nft -f -` reads them; loading them replaces what was loaded before.
pub fn ruleset(udp_ports: &[u16], resolvers: &[IpAddr], ipv6: Ipv6) -> String {
    let family = match ipv6 {
        Ipv6::Redirect => "inet",
        Ipv6::Drop => "ip",
    };
    let mut text = String::new();
    // Declaring a table before deleting it makes the deletion right whether it is there or not.
    let _ = write!(
        text,
        "table inet entente\ndelete table inet entente\n\
         table inet entente {{\n{}{}}}\n",
        filter_out(udp_ports, resolvers),
        filter_in(udp_ports),
    );
    let replace = if ipv6 == Ipv6::Drop { "table ip entente\ndelete table ip entente\n" } else { "" };
    let _ = write!(
        text,
        "{replace}table {family} entente {{\n\
         \x20 chain nat_out {{\n\
         \x20   type nat hook output priority -100; policy accept;\n\
         \x20   meta skuid {UID} meta skgid {UID} accept\n\
         \x20   oifname \"lo\" accept\n\
         {}\x20   meta l4proto tcp redirect to :{OUTBOUND_PORT}\n\
         \x20 }}\n\
         \x20 chain nat_in {{\n\
         \x20   type nat hook prerouting priority -100; policy accept;\n\
         \x20   iifname \"lo\" accept\n\
         \x20   tcp dport {HEALTH_PORT} accept\n\
         \x20   meta l4proto tcp redirect to :{INBOUND_PORT}\n\
         \x20 }}\n\
         }}\n",
        dns_out(resolvers, ipv6),
    );
    text
}

/// What is asked of the pod's resolvers goes to the guard; conntrack lets its answers come from the resolver.
fn dns_out(resolvers: &[IpAddr], ipv6: Ipv6) -> String {
    let mut rules = String::new();
    for (family, addresses) in by_family(resolvers) {
        if !addresses.is_empty() && (family == "ip" || ipv6 == Ipv6::Redirect) {
            let addresses = list(&addresses);
            for protocol in ["udp", "tcp"] {
                let _ = writeln!(
                    rules,
                    "    {family} daddr {{ {addresses} }} {protocol} dport {DNS} redirect to :{DNS_PORT}"
                );
            }
        }
    }
    rules
}

fn by_family(resolvers: &[IpAddr]) -> [(&'static str, Vec<IpAddr>); 2] {
    let (v4, v6) = resolvers.iter().partition(|address| address.is_ipv4());
    [("ip", v4), ("ip6", v6)]
}

/// What may leave the pod. TCP that conntrack did not redirect (an invalid packet, say) is dropped here.
fn filter_out(udp_ports: &[u16], resolvers: &[IpAddr]) -> String {
    let mut chain = format!(
        "  chain filter_out {{\n\
         \x20   type filter hook output priority 0; policy drop;\n\
         \x20   oifname \"lo\" accept\n\
         \x20   meta l4proto tcp meta skuid {UID} meta skgid {UID} accept\n\
         \x20   ip daddr 127.0.0.1 tcp dport {{ {OUTBOUND_PORT}, {DNS_PORT} }} accept\n\
         \x20   ip6 daddr ::1 tcp dport {{ {OUTBOUND_PORT}, {DNS_PORT} }} accept\n\
         \x20   ip daddr 127.0.0.1 udp dport {DNS_PORT} accept\n\
         \x20   ip6 daddr ::1 udp dport {DNS_PORT} accept\n"
    );
    for (family, addresses) in by_family(resolvers) {
        if !addresses.is_empty() {
            let (addresses, proxy) = (list(&addresses), format!("meta skuid {UID} meta skgid {UID}"));
            let _ = writeln!(chain, "    {family} daddr {{ {addresses} }} udp dport {DNS} {proxy} accept");
            // Before what is established: conntrack may remember a question of the proxy's with the same numbers.
            let _ = writeln!(chain, "    {family} daddr {{ {addresses} }} udp dport {DNS} drop");
        }
    }
    let _ = writeln!(chain, "    ct state established,related accept");
    if !udp_ports.is_empty() {
        let _ = writeln!(chain, "    udp sport {{ {0} }} accept\n    udp dport {{ {0} }} accept", list(udp_ports));
    }
    let _ = writeln!(chain, "{NEIGHBOURS}  }}");
    chain
}

/// What may enter the pod.
fn filter_in(udp_ports: &[u16]) -> String {
    let mut chain = format!(
        "  chain filter_in {{\n\
         \x20   type filter hook input priority 0; policy drop;\n\
         \x20   iifname \"lo\" accept\n\
         \x20   ct state established,related accept\n\
         \x20   tcp dport {{ {INBOUND_PORT}, {HEALTH_PORT} }} accept\n"
    );
    if !udp_ports.is_empty() {
        let _ = writeln!(chain, "    udp dport {{ {} }} accept", list(udp_ports));
    }
    let _ = writeln!(chain, "{NEIGHBOURS}  }}");
    chain
}

/// IPv6 does not work without neighbour discovery (RFC 4861).
const NEIGHBOURS: &str =
    "    icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept\n";

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Why the pod's connections cannot be intercepted; the pod must not start then.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// nft is missing or cannot be run.
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    /// nft refused the rules.
    #[error("nft refused the rules: {0}")]
    Refused(String),
    /// The listener for the proof.
    #[error("cannot listen on {0} to prove the rules")]
    Listen(SocketAddr, #[source] io::Error),
    /// Connections are not redirected.
    #[error("a connection to {0} was not redirected to the proxy")]
    NotRedirected(SocketAddr),
    /// The address is unreachable, so nothing is proven.
    #[error("neither IPv4 nor IPv6 could be proven: the pod has no route")]
    NoRoute,
    /// IPv6 should have been dropped.
    #[error("a connection to {0} went out, though IPv6 is dropped")]
    NotDropped(SocketAddr),
}

/// Loads the rules and proves them.
pub async fn intercept(udp_ports: &[u16], resolvers: &[IpAddr]) -> Result<Ipv6, InterceptError> {
    let v4 = address(PROOF_V4)?;
    let v6 = address(PROOF_V6)?;
    let redirected = match load(&ruleset(udp_ports, resolvers, Ipv6::Redirect)).await {
        Ok(()) => {
            let (four, six) = (prove(v4).await?, prove(v6).await?);
            match (four, six) {
                (Proof::Escaped, _) => return Err(InterceptError::NotRedirected(v4)),
                (Proof::Unreachable, Proof::Redirected) | (Proof::Redirected, Proof::Redirected) => {
                    return Ok(Ipv6::Redirect);
                }
                (Proof::Unreachable, Proof::Unreachable | Proof::Escaped) => return Err(InterceptError::NoRoute),
                (Proof::Redirected, Proof::Unreachable | Proof::Escaped) => true,
            }
        }
        Err(InterceptError::Refused(reason)) => {
            tracing::warn!(reason, "cannot redirect both families, IPv6 will be dropped");
            false
        }
        Err(error) => return Err(error),
    };
    tracing::info!(redirected, "IPv6 is dropped in this pod");
    load(&ruleset(udp_ports, resolvers, Ipv6::Drop)).await?;
    match prove(v4).await? {
        Proof::Redirected => {}
        Proof::Unreachable => return Err(InterceptError::NoRoute),
        Proof::Escaped => return Err(InterceptError::NotRedirected(v4)),
    }
    if leaves(v6).await { Err(InterceptError::NotDropped(v6)) } else { Ok(Ipv6::Drop) }
}

fn address(text: &str) -> Result<SocketAddr, InterceptError> {
    text.parse().map_err(|_| InterceptError::NoRoute)
}

async fn load(rules: &str) -> Result<(), InterceptError> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(InterceptError::Run)?;
    if let Some(mut input) = nft.stdin.take() {
        input.write_all(rules.as_bytes()).await.map_err(InterceptError::Run)?;
    }
    let output = nft.wait_with_output().await.map_err(InterceptError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    Err(InterceptError::Refused(String::from_utf8_lossy(&output.stderr).chars().take(600).collect()))
}

/// What a dial of a documentation address showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// It arrived at the proxy's port.
    Redirected,
    /// There is no route, so nothing can leave.
    Unreachable,
    /// It arrived nowhere, or somewhere else.
    Escaped,
}

/// Dials `target` as a process that the rules do not exempt, and looks where it arrives.
async fn prove(target: SocketAddr) -> Result<Proof, InterceptError> {
    let loopback: IpAddr =
        if target.is_ipv4() { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
    let proxy = SocketAddr::new(loopback, OUTBOUND_PORT);
    let listener = match sockets::listen(proxy).and_then(TcpListener::from_std) {
        Ok(listener) => listener,
        Err(_) if target.is_ipv6() => return Ok(Proof::Unreachable),
        Err(error) => return Err(InterceptError::Listen(proxy, error)),
    };
    // The kernel answers for the listener, so the dial succeeds before the connection is accepted.
    let dialled = match timeout(PROOF, TcpStream::connect(target)).await {
        Ok(Ok(dialled)) => dialled,
        Ok(Err(error)) if is_unreachable(&error) => return Ok(Proof::Unreachable),
        Ok(Err(_)) | Err(_) => return Ok(Proof::Escaped),
    };
    match timeout(PROOF, listener.accept()).await {
        Ok(Ok((_, from))) if dialled.local_addr().is_ok_and(|local| local.port() == from.port()) => {
            Ok(Proof::Redirected)
        }
        _ => Ok(Proof::Escaped),
    }
}

async fn leaves(target: SocketAddr) -> bool {
    matches!(timeout(DROPPED, TcpStream::connect(target)).await, Ok(Ok(_)))
}

fn is_unreachable(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, NetworkUnreachable, Unsupported};
    matches!(error.kind(), NetworkUnreachable | AddrNotAvailable | Unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_leaves_to_resolvers_and_declared_ports_only() {
        let resolvers = ["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()];
        let rules = ruleset(&[5060, 3478], &resolvers, Ipv6::Redirect);
        let udp: Vec<_> = rules.lines().filter(|line| line.contains("udp")).map(str::trim).collect();
        let expected = [
            "ip daddr 127.0.0.1 udp dport 15053 accept",
            "ip6 daddr ::1 udp dport 15053 accept",
            "ip daddr { 10.96.0.10 } udp dport 53 meta skuid 5061 meta skgid 5061 accept",
            "ip daddr { 10.96.0.10 } udp dport 53 drop",
            "ip6 daddr { fd00::a } udp dport 53 meta skuid 5061 meta skgid 5061 accept",
            "ip6 daddr { fd00::a } udp dport 53 drop",
            "udp sport { 5060, 3478 } accept",
            "udp dport { 5060, 3478 } accept",
            "udp dport { 5060, 3478 } accept",
            "ip daddr { 10.96.0.10 } udp dport 53 redirect to :15053",
            "ip6 daddr { fd00::a } udp dport 53 redirect to :15053",
        ];
        assert_eq!(udp, expected);
        assert_eq!(rules.matches("policy drop").count(), 2);
    }

    #[test]
    fn only_the_proxys_uid_and_gid_together_are_exempt() {
        for ipv6 in [Ipv6::Redirect, Ipv6::Drop] {
            let rules = ruleset(&[], &[], ipv6);
            for line in rules.lines().filter(|line| line.contains("skuid") || line.contains("skgid")) {
                assert!(line.contains("skuid 5061 meta skgid 5061 accept"), "{line}");
            }
            assert_eq!(rules.matches("skuid").count(), 2);
            assert!(!rules.contains("dport 53"));
        }
    }

    #[test]
    fn without_ipv6_redirect_no_rule_lets_ipv6_out() {
        let rules = ruleset(&[], &["fd00::a".parse().unwrap()], Ipv6::Drop);
        assert!(rules.contains("table ip entente {"));
        assert!(!rules.contains("ip6 daddr { fd00::a } udp dport 53 redirect"), "a table of ip knows no ip6");
        assert_eq!(rules.matches("table inet entente {").count(), 1);
    }
}
