//! DNS that lies, on the real node: nothing is sent to whoever it names, and the reason can be read.

use crate::{
    cluster::{Place, Says, until},
    organisation::{Organisation, Server},
    workloads::{IDLE, partner, server, service, web},
};

const UNDECLARED: &str = "198.18.254.10";
const IMPOSTOR: &str = "198.18.254.11";
const REAL: &str = "198.18.254.12";

/// What the client of `place` gets of a URL; nothing = it was refused.
fn fetch(place: &Place, url: &str) -> String {
    place.run("deploy/client", &format!("curl -sS --max-time 8 {url} 2>/dev/null")).out
}

fn mismatches(place: &Place) -> u64 {
    place.refusals(&place.pod("client"), "outbound", "DnsMismatch")
}

#[test]
fn a_name_of_ours_that_dns_leads_elsewhere_is_not_answered_and_nothing_is_sent_there() {
    let place = Place::new("hijack");
    place.apply(&server("orders", &web(8080, "orders"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("orders", 80, 80));
    place.apply(&server("other", &web(8080, "other"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("other", 80, 80));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["orders", "other", "client"]);
    let name = format!("orders.{}.svc.cluster.local", place.name);
    let url = format!("http://{name}/");
    assert_eq!(fetch(&place, &url), "orders\n");
    let listener = Organisation::new("Nobody", "hijack");
    let _heard = Server::new(
        &listener,
        UNDECLARED,
        &["-u", &format!("TCP-LISTEN:80,bind={UNDECLARED},reuseaddr,fork"), "OPEN:heard,creat,append"],
    );
    let other = place.must(&["get", "service", "other", "-o", "jsonpath={.spec.clusterIP}"]);
    for (address, whose) in [(UNDECLARED, "nobody's"), (other.as_str(), "another server's")] {
        let before = mismatches(&place);
        let lie = Says::new(&name, address);
        until(10, "the client's resolver tells the lie", || {
            assert_eq!(fetch(&place, &url).replace("orders\n", ""), "", "{whose}");
            if mismatches(&place) > before { Ok(()) } else { Err("no mismatch yet".to_owned()) }
        });
        assert_eq!(fetch(&place, &url), "", "{whose} address");
        place.refusal_event("client", "DnsMismatch");
        drop(lie);
        until(10, "the truth is believed again", || {
            let said = fetch(&place, &url);
            if said == "orders\n" { Ok(()) } else { Err(said) }
        });
    }
    assert_eq!(listener.heard(), "", "not one byte went to the undeclared address");
}

#[test]
fn a_partners_name_that_dns_leads_to_a_look_alike_is_refused_before_a_byte_is_sent() {
    let place = Place::at_the_edge("lookalike");
    let (fabrikam, mallory) = (Organisation::new("Fabrikam", "lookalike"), Organisation::new("Mallory", "lookalike"));
    let edges = "  edges: [{host: www.fabrikam.example, port: 443}]";
    place.apply(&partner("fabrikam", edges, &fabrikam.root()));
    place.apply(&server("client", IDLE, "[]", "  role: Edge"));
    place.ready(&["client"]);
    let ours = place.bundle("ca.crt");
    for organisation in [&fabrikam, &mallory] {
        organisation.trusts(&ours);
        organisation.certifies("www.fabrikam.example");
    }
    // The application speaks plainly: its sidecar makes mutual TLS of it.
    let line = "printf hello | timeout 8 socat -T3 - TCP:www.fabrikam.example:443,connect-timeout=5 2>/dev/null";
    let call = || place.run("deploy/client", line).out;
    let real = fabrikam.serves("www.fabrikam.example", REAL, 443);
    {
        let _truth = Says::new("www.fabrikam.example", REAL);
        until(15, "the partner is reached", || {
            let said = call();
            if said == "www.fabrikam.example\n" { Ok(()) } else { Err(format!("{said}\n{}", place.picture())) }
        });
        until(5, "the partner hears what is said", || {
            let heard = fabrikam.heard();
            if heard.contains("hello") { Ok(()) } else { Err(heard) }
        });
    }
    place.partner_is("Reachable", "True/Verified/");
    let impostor = mallory.serves("www.fabrikam.example", IMPOSTOR, 443);
    let _lie = Says::new("www.fabrikam.example", IMPOSTOR);
    until(10, "the lie is told", || {
        call();
        let refused = place.refusals(&place.pod("client"), "outbound", "UntrustedRoot");
        if refused > 0 { Ok(()) } else { Err(place.picture()) }
    });
    assert_eq!(call(), "");
    assert_eq!(mallory.heard(), "", "not one byte went to the look-alike");
    place.partner_is("Reachable", "False/UntrustedRoot/");
    drop((real, impostor));
}
