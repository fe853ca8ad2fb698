//! One trust domain for everybody: all peers hold certificates of the same form under the same issuer, check the same
//! names, and know the same 10,000 revoked serials.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

use entente::{
    identity::SpiffeId,
    pki::{
        authority::{Authority, Serial},
        crl::{Reason, Revoked, Window},
    },
    sidecar, telemetry,
};
use jiff::SignedDuration;
use rcgen::{DnType, SerialNumber};

use crate::support::domain::{Certified, Domain, instant, pem};

/// How many serials are revoked.
pub(crate) const REVOKED: usize = 10_000;

/// Serials that everybody knows as revoked.
#[derive(Debug)]
pub(crate) struct Revocations(Vec<Serial>);

impl Revocations {
    pub(crate) fn new() -> Self {
        let mut serials: Vec<_> = (0..REVOKED).map(|_| Serial::from_random(telemetry::random())).collect();
        serials.sort();
        Self(serials)
    }

    /// As a brief has them.
    pub(crate) fn hex(&self) -> Vec<String> {
        self.0.iter().map(Serial::to_string).collect()
    }

    /// As `crl.pem` has them: the issuer's list, and the root's, without which OpenSSL vouches for no chain.
    fn lists(&self, domain: &Domain) -> anyhow::Result<String> {
        let now = telemetry::now();
        let authority = Authority::load(&domain.material, now)?;
        let day = SignedDuration::from_hours(24);
        let window = Window { number: 1, this_update: now - SignedDuration::from_mins(5), next_update: now + day };
        let revoked: Vec<_> =
            self.0.iter().map(|serial| Revoked { serial: *serial, at: now, reason: Reason::PodGone }).collect();
        let root = authority.sign_root_crl(&[], window)?.unwrap_or_default();
        Ok(authority.sign_crl(&revoked, window)? + &root)
    }

    /// A leaf that everybody must refuse.
    pub(crate) fn revoked(&self, domain: &Domain, server: &str) -> Certified {
        // The last one of the list, so that all of it must have been read.
        let hex = self.0.last().map(Serial::to_string).unwrap_or_default();
        let serial: Vec<u8> =
            (0..hex.len() / 2).filter_map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).ok()).collect();
        leaf(domain, server, Some(SerialNumber::from_slice(&serial)))
    }
}

/// A good leaf of a server, for a day.
pub(crate) fn certificate(domain: &Domain, server: &str) -> Certified {
    leaf(domain, server, None)
}

fn leaf(domain: &Domain, server: &str, serial: Option<SerialNumber>) -> Certified {
    domain.forge(server, |params, now| {
        params.not_after = instant(now + SignedDuration::from_hours(24));
        // HAProxy and nginx look at the subject.
        params.distinguished_name.push(DnType::CommonName, name(&domain.id(server)));
        params.serial_number = serial;
    })
}

/// The DNS name of a server.
pub(crate) fn name(id: &SpiffeId) -> String {
    id.topology_name().map(|name| name.to_string()).unwrap_or_default()
}

/// Writes what the peers' configurations name: `ca.pem`, `crl.pem`, `{client,server}.{crt,key,pem}`.
pub(crate) fn write(folder: &Path, domain: &Domain, revocations: &Revocations) -> anyhow::Result<()> {
    let mut files = vec![
        ("ca.pem".to_owned(), domain.material.root_certificate.clone()),
        ("crl.pem".to_owned(), revocations.lists(domain)?),
    ];
    for server in ["client", "server"] {
        let [chain, key] = pem(&certificate(domain, server));
        files.push((format!("{server}.pem"), chain.clone() + &key));
        files.push((format!("{server}.crt"), chain));
        files.push((format!("{server}.key"), key));
    }
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        chown(&path, Some(sidecar::UID), Some(sidecar::UID))?;
    }
    Ok(())
}
