//! What an audit may find, in words: the code, what it means, and what to do about it.

use serde::Serialize;

/// Something that is not explained.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "code", rename_all_fields = "camelCase")]
pub enum Finding {
    /// A certificate in use is in no ledger.
    NotRecorded {
        /// Its sidecar's pod.
        pod_uid: String,
        /// Its serial.
        serial: String,
    },
    /// A sidecar uses a certificate that was taken back.
    RevokedInUse {
        /// The sidecar's pod.
        pod_uid: String,
        /// Its serial.
        serial: String,
        /// The ledger that says so.
        ledger: String,
    },
    /// A pod uses a certificate that was issued to another.
    HeldByAnother {
        /// The pod that uses it.
        pod_uid: String,
        /// Its serial.
        serial: String,
        /// The ledger that says whose it is.
        ledger: String,
    },
    /// A certificate in use names another server than its ledger does.
    IdentityDiffers {
        /// The pod that uses it.
        pod_uid: String,
        /// Its serial.
        serial: String,
        /// The identity in the certificate.
        id: String,
        /// The ledger.
        ledger: String,
    },
    /// A certificate was taken back, and no published list says so.
    NotListed {
        /// The ledger that says so.
        ledger: String,
        /// Whose it was.
        server: String,
        /// Its serial.
        serial: String,
    },
    /// One serial stands in the ledgers more than once.
    SerialTwice {
        /// Which.
        serial: String,
        /// The ledgers that name it.
        ledgers: Vec<String>,
    },
    /// No authority has the key that signed a certificate.
    UnknownIssuer {
        /// The ledger.
        ledger: String,
        /// Whose it is.
        server: String,
        /// The certificate.
        serial: String,
        /// The key.
        issuer: String,
    },
    /// A certificate is valid whose server is not declared.
    ServerNotDeclared {
        /// The ledger.
        ledger: String,
        /// Whose it was.
        server: String,
        /// The certificate.
        serial: String,
    },
    /// A certificate is valid whose pod is not there.
    PodGone {
        /// The ledger.
        ledger: String,
        /// Whose it is.
        server: String,
        /// The pod.
        pod_uid: String,
        /// The certificate.
        serial: String,
    },
    /// A ledger cannot be read.
    LedgerUnreadable {
        /// Which.
        ledger: String,
        /// Why.
        why: String,
    },
}

impl Finding {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotRecorded { .. } => "NotRecorded",
            Self::RevokedInUse { .. } => "RevokedInUse",
            Self::HeldByAnother { .. } => "HeldByAnother",
            Self::IdentityDiffers { .. } => "IdentityDiffers",
            Self::NotListed { .. } => "NotListed",
            Self::SerialTwice { .. } => "SerialTwice",
            Self::UnknownIssuer { .. } => "UnknownIssuer",
            Self::ServerNotDeclared { .. } => "ServerNotDeclared",
            Self::PodGone { .. } => "PodGone",
            Self::LedgerUnreadable { .. } => "LedgerUnreadable",
        }
    }

    /// What was found.
    pub fn what(&self) -> String {
        match self {
            Self::NotRecorded { pod_uid, serial } => format!("pod {pod_uid} uses {serial}, which is in no ledger"),
            Self::RevokedInUse { pod_uid, serial, ledger } => {
                format!("pod {pod_uid} uses {serial}, which {ledger} says is taken back")
            }
            Self::HeldByAnother { pod_uid, serial, ledger } => {
                format!("pod {pod_uid} uses {serial}, which {ledger} says was issued to another holder")
            }
            Self::IdentityDiffers { pod_uid, serial, id, ledger } => {
                format!("pod {pod_uid} uses {serial} as {id}, and {ledger} is that of another server")
            }
            Self::NotListed { ledger, server, serial } => {
                format!("{serial} of {server} in {ledger} was taken back, and crl.pem does not list it")
            }
            Self::SerialTwice { serial, ledgers } => format!("{serial} stands in {}", ledgers.join(", ")),
            Self::UnknownIssuer { ledger, server, serial, issuer } => {
                format!("{serial} of {server} in {ledger} was signed by {issuer}, which no TrustDomain lists")
            }
            Self::ServerNotDeclared { ledger, server, serial } => {
                format!("{serial} in {ledger} is valid, and TrustedServer {server} is not declared")
            }
            Self::PodGone { ledger, server, pod_uid, serial } => {
                format!("{serial} of {server} in {ledger} is valid, and its pod {pod_uid} is gone")
            }
            Self::LedgerUnreadable { ledger, why } => format!("{ledger}: {why}"),
        }
    }

    /// What to do about it.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::NotRecorded { .. } => {
                "The authority's key may have signed outside the operator, or a ledger was removed: list the serial in \
                 revocation.serials of the TrustDomain, and rotate the authority if nobody can say where it is from."
            }
            Self::RevokedInUse { .. } => "Others refuse it already. Delete the pod; read the log of its sidecar first.",
            Self::HeldByAnother { .. } => {
                "A key left its pod: list the serial in revocation.serials, delete both pods, and find out how."
            }
            Self::IdentityDiffers { .. } => {
                "The authority's key signed outside the operator, or a ledger was exchanged: list the serial in \
                 revocation.serials and rotate the authority."
            }
            Self::NotListed { .. } => {
                "The leader publishes lists within a minute. If this stays, look at RevocationPublished of the \
                 TrustDomain; sidecars know of it all the same."
            }
            Self::SerialTwice { .. } => {
                "Somebody copied a line or a ledger: compare with the audit log, and list the serial in \
                 revocation.serials."
            }
            Self::UnknownIssuer { .. } => {
                "Sidecars refuse it, as its authority is not trusted. Delete the pod that holds it to get another; find \
                 out who removed the authority."
            }
            Self::ServerNotDeclared { .. } | Self::PodGone { .. } => {
                "The leader takes such certificates back within two minutes. If this stays, read the controller's log for \
                 \"write down revocations\"."
            }
            Self::LedgerUnreadable { .. } => {
                "Somebody wrote to it. Its server gets no certificate until the ConfigMap is restored, or deleted with \
                 revokeIssuedBefore set to now on its TrustedServer."
            }
        }
    }

    /// Whether it is found in a sound cluster too, for a moment: while a pod ends, or a sidecar gets its next certificate.
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::RevokedInUse { .. }
            | Self::ServerNotDeclared { .. }
            | Self::PodGone { .. }
            | Self::NotListed { .. } => true,
            Self::NotRecorded { .. }
            | Self::HeldByAnother { .. }
            | Self::IdentityDiffers { .. }
            | Self::SerialTwice { .. }
            | Self::UnknownIssuer { .. }
            | Self::LedgerUnreadable { .. } => false,
        }
    }
}
