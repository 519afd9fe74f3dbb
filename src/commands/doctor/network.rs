//! Whether names resolve, as `download` needs it.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use super::Finding;

const CHECK: &str = "DNS";
/// The system's resolver may wait for minutes; nobody here does.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn names(name: &str) -> Finding {
    let started = Instant::now();
    let reason = match resolve(name) {
        Ok(addresses) if !addresses.is_empty() => {
            let first = addresses.first().map(ToString::to_string).unwrap_or_default();
            let took = started.elapsed().as_millis();
            return Finding::ok(CHECK, format!("{name} is {first} ({} addresses in {took} ms)", addresses.len()));
        }
        Ok(_) => "it has no address".to_owned(),
        Err(reason) => reason,
    };
    if !has_way_out() {
        return Finding::note(CHECK, "no network: this machine has no way out (no default route)")
            .advise("downloading needs one; everything after it does not");
    }
    let found = format!("{name} does not resolve: {reason}");
    let mut advice = match nameservers().join(", ") {
        servers if servers.is_empty() => "no nameserver is set in /etc/resolv.conf: add one".to_owned(),
        // The words for an answer, as opposed to none.
        servers if reason.contains("not known") => format!(
            "the nameserver ({servers}) answers that there is no such name: does it know an inner network only? \
             --resolve NAME asks for another name"
        ),
        servers => format!("see whether the nameserver in /etc/resolv.conf ({servers}) answers"),
    };
    advice += "; a container may need --dns ADDRESS or --network host";
    if ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"].iter().any(|name| std::env::var_os(name).is_some()) {
        advice += "; the proxy in the environment is not used: it would hide the addresses that are connected to";
    }
    advice += ". Until then a download refuses every row";
    if cfg!(feature = "pipeline") {
        Finding::problem(CHECK, found, advice)
    } else {
        Finding::note(CHECK, format!("{found}; this binary downloads nothing"))
    }
}

fn resolve(name: &str) -> Result<Vec<IpAddr>, String> {
    let (sender, receiver) = sync_channel(1);
    let question = (name.to_owned(), 0_u16);
    // A resolver that does not answer is left behind; the process ends without it.
    std::thread::spawn(move || {
        let answer = question.to_socket_addrs().map(|found| found.map(|address| address.ip()).collect());
        let _ = sender.send(answer.map_err(|error| {
            let words = error.to_string();
            words.strip_prefix("failed to lookup address information: ").unwrap_or(&words).to_owned()
        }));
    });
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|error| match error {
        RecvTimeoutError::Timeout => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        RecvTimeoutError::Disconnected => Err("the resolver failed".to_owned()),
    })
}

/// Whether the kernel has a default route. A system that does not say is taken to have one.
fn has_way_out() -> bool {
    let v4 = std::fs::read_to_string("/proc/net/route");
    let v6 = std::fs::read_to_string("/proc/net/ipv6_route");
    if v4.is_err() && v6.is_err() {
        return true;
    }
    v4.is_ok_and(|table| has_default_route_v4(&table)) || v6.is_ok_and(|table| has_default_route_v6(&table))
}

/// Destination and mask are both zero.
fn has_default_route_v4(table: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")
    })
}

/// The destination is ::/0, and not over the loopback device, where the kernel keeps its refusals.
fn has_default_route_v6(table: &str) -> bool {
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let everywhere = fields.first().is_some_and(|to| to.bytes().all(|b| b == b'0')) && fields.get(1) == Some(&"00");
        everywhere && fields.last() != Some(&"lo")
    })
}

fn nameservers() -> Vec<String> {
    let settings = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = settings.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.map(|server| server.trim().to_owned()).filter(|server| !server.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_is_told_from_others() {
        let header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let local = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let default = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert!(!has_default_route_v4(&format!("{header}{local}")));
        assert!(has_default_route_v4(&format!("{header}{local}{default}")));
        let zeros = "0".repeat(32);
        let v6 = |device: &str| {
            format!("{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       {device}\n")
        };
        assert!(has_default_route_v6(&v6("eth0")) && !has_default_route_v6(&v6("lo")));
    }
}
