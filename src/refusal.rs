//! Every reason a connection is refused or ended, with its stable code.
//!
//! Exactly one reason per connection: the first stage that failed, in the order of the variants below. The code is
//! the metric's label and stands in access records, reports and Events; the detail is a second closed list, for
//! records only.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a connection was refused or ended. Ordered by stage: capacity, local state, TLS, chain, names, revocation,
/// topology, outbound, ends of live connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Refusal {
    /// A bound of this proxy was reached.
    Limit(LimitDetail),
    /// This proxy cannot judge anybody yet, or no longer.
    NotReady(ReadyDetail),
    /// The destination is the proxy itself or not this pod.
    ForbiddenDestination(DestinationDetail),
    /// The first bytes were no TLS record on a port that wants TLS.
    NotTls,
    /// A deadline passed.
    Timeout(TimeoutDetail),
    /// The TLS handshake failed before a certificate could be judged.
    HandshakeFailed(HandshakeDetail),
    /// The peer insisted on another application protocol.
    BadAlpn,
    /// The peer presented no certificate.
    NoCertificate,
    /// No path to an anchor of the one scope that counts.
    UntrustedRoot(RootDetail),
    /// A path that breaks a rule of the certificate policy.
    BadChain(ChainDetail),
    /// The certificate is not meant for this role (extended key usage).
    WrongUsage,
    /// Not valid yet.
    NotYetValid,
    /// No longer valid.
    Expired,
    /// The leaf names no identity of the accepted shape.
    BadName(NameDetail),
    /// The names in the leaf belong to no scope that the port lists, or to several.
    NameOutOfScope,
    /// The partner's names, but not one of the public keys that are pinned for it.
    PinMismatch,
    /// The callee is not the declared server.
    WrongServer(ServerDetail),
    /// The certificate's serial is revoked.
    Revoked,
    /// Everything that the identity held until some moment is taken back.
    Withdrawn(WithdrawnDetail),
    /// The chain leads through an issuing certificate that is not in use, or no longer.
    IssuerNotCurrent,
    /// Nobody told us what this issuer has revoked.
    UnknownStatus,
    /// What we were told of revocations is too old to rely on.
    #[serde(rename = "staleCRL")]
    StaleCrl,
    /// The peer's identity is not among those the port admits.
    NotInTopology,
    /// The port is not declared.
    PortNotAllowed,
    /// The partner is suspended.
    PartnerSuspended,
    /// The contract with the partner has ended.
    PartnerExpired,
    /// The address is not a declared server's and not allowed egress.
    DestinationNotDeclared,
    /// What was told of a declared name is not where its server is.
    DnsMismatch,
    /// The peer could not be reached.
    DialFailed,
    /// The peer refused us with a TLS alert.
    PeerRefused(AlertDetail),
    /// The peer's stream ended without `close_notify`.
    Truncated,
    /// One direction was closed and the other stayed silent past its deadline.
    HalfClosed,
    /// This proxy is shutting down.
    Drained,
}

macro_rules! details {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    )+};
}

details! {
    /// Which bound was reached.
    LimitDetail {
        /// Too many handshakes under way.
        Pending = "pending",
        /// Too many open connections.
        Connections = "connections",
        /// A partner begins more handshakes in a second than it may.
        PartnerRate = "partnerRate",
        /// A partner has as many open connections as it may have.
        PartnerConnections = "partnerConnections",
        /// No file descriptor left.
        Descriptors = "descriptors",
    }
    /// What this proxy lacks.
    ReadyDetail {
        /// No certificate of our own yet.
        NoIdentity = "noIdentity",
        /// No brief yet.
        NoBrief = "noBrief",
        /// Our own certificate has expired.
        OwnExpired = "ownExpired",
        /// Our own certificate is revoked.
        OwnRevoked = "ownRevoked",
        /// Our server is suspended.
        ServerSuspended = "serverSuspended",
        /// Our server is no longer declared.
        Withdrawn = "withdrawn",
        /// The certificate that a partner is to be shown is not mounted, or cannot be used.
        NoPresented = "noPresented",
    }
    /// What is wrong with the destination.
    DestinationDetail {
        /// One of the proxy's own ports.
        OwnPort = "ownPort",
        /// An address that is not this pod's.
        NotThisPod = "notThisPod",
    }
    /// Which deadline passed.
    TimeoutDetail {
        /// The handshake.
        Handshake = "handshake",
        /// Connecting to the peer.
        Connect = "connect",
    }
    /// How the handshake failed.
    HandshakeDetail {
        /// No common protocol version or cipher suite.
        Version = "version",
        /// A message that breaks the protocol.
        Malformed = "malformed",
        /// A server name that is not ours.
        ServerName = "serverName",
    }
    /// Why no anchor vouches for the chain.
    RootDetail {
        /// No path was found.
        NoPath = "noPath",
        /// The only anchor is outside its validity.
        AnchorExpired = "anchorExpired",
    }
    /// Which rule the chain breaks.
    ChainDetail {
        /// A signature does not verify.
        Signature = "signature",
        /// More certificates or bytes than a chain may have.
        TooLarge = "tooLarge",
        /// Something the certificate policy forbids.
        Policy = "policy",
        /// Not a certificate.
        Encoding = "encoding",
    }
    /// What is wrong with the leaf's names.
    NameDetail {
        /// No URI name.
        NoIdentity = "noIdentity",
        /// More than one URI name.
        SeveralIdentities = "severalIdentities",
        /// A kind of name that is not accepted.
        Kind = "kind",
        /// A name that breaks its grammar.
        Grammar = "grammar",
    }
    /// Why certificates of an identity are taken back.
    WithdrawnDetail {
        /// Its server is suspended.
        Suspended = "suspended",
        /// Its server is no longer declared.
        Deleted = "deleted",
        /// It was issued before the moment that the server names (`revokeIssuedBefore`).
        IssuedBefore = "issuedBefore",
        /// The record of what was issued is lost or was meddled with.
        Ledger = "ledger",
    }
    /// What the peer said when it refused us (RFC 8446 §6.2).
    AlertDetail {
        /// It hung up without a word, or said what tells nothing of certificates.
        Other = "other",
        /// Our certificate is revoked.
        Revoked = "certificateRevoked",
        /// Our certificate is out of date.
        Expired = "certificateExpired",
        /// It does not know our authority.
        UnknownCa = "unknownCA",
        /// It knows us and does not let us in.
        AccessDenied = "accessDenied",
    }
    /// How the callee differs from the declared server.
    ServerDetail {
        /// Another SPIFFE ID.
        Uri = "uri",
        /// The topology name is missing; of a partner: the name that was dialled.
        DnsName = "dnsName",
    }
}

impl Refusal {
    /// The stable code, the same in metrics, records, reports and Events.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Limit(_) => "Limit",
            Self::NotReady(_) => "NotReady",
            Self::ForbiddenDestination(_) => "ForbiddenDestination",
            Self::NotTls => "NotTls",
            Self::Timeout(_) => "Timeout",
            Self::HandshakeFailed(_) => "HandshakeFailed",
            Self::BadAlpn => "BadAlpn",
            Self::NoCertificate => "NoCertificate",
            Self::UntrustedRoot(_) => "UntrustedRoot",
            Self::BadChain(_) => "BadChain",
            Self::WrongUsage => "WrongUsage",
            Self::NotYetValid => "NotYetValid",
            Self::Expired => "Expired",
            Self::BadName(_) => "BadName",
            Self::NameOutOfScope => "NameOutOfScope",
            Self::PinMismatch => "PinMismatch",
            Self::WrongServer(_) => "WrongServer",
            Self::Revoked => "Revoked",
            Self::Withdrawn(_) => "Withdrawn",
            Self::IssuerNotCurrent => "IssuerNotCurrent",
            Self::UnknownStatus => "UnknownStatus",
            Self::StaleCrl => "StaleCRL",
            Self::NotInTopology => "NotInTopology",
            Self::PortNotAllowed => "PortNotAllowed",
            Self::PartnerSuspended => "PartnerSuspended",
            Self::PartnerExpired => "PartnerExpired",
            Self::DestinationNotDeclared => "DestinationNotDeclared",
            Self::DnsMismatch => "DnsMismatch",
            Self::DialFailed => "DialFailed",
            Self::PeerRefused(_) => "PeerRefused",
            Self::Truncated => "Truncated",
            Self::HalfClosed => "HalfClosed",
            Self::Drained => "Drained",
        }
    }

    /// The detail, or an empty text where the code says all.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Limit(detail) => detail.text(),
            Self::NotReady(detail) => detail.text(),
            Self::ForbiddenDestination(detail) => detail.text(),
            Self::Timeout(detail) => detail.text(),
            Self::HandshakeFailed(detail) => detail.text(),
            Self::UntrustedRoot(detail) => detail.text(),
            Self::BadChain(detail) => detail.text(),
            Self::BadName(detail) => detail.text(),
            Self::WrongServer(detail) => detail.text(),
            Self::Withdrawn(detail) => detail.text(),
            Self::PeerRefused(detail) => detail.text(),
            Self::NotTls
            | Self::BadAlpn
            | Self::NoCertificate
            | Self::WrongUsage
            | Self::NotYetValid
            | Self::Expired
            | Self::NameOutOfScope
            | Self::PinMismatch
            | Self::Revoked
            | Self::IssuerNotCurrent
            | Self::UnknownStatus
            | Self::StaleCrl
            | Self::NotInTopology
            | Self::PortNotAllowed
            | Self::PartnerSuspended
            | Self::PartnerExpired
            | Self::DestinationNotDeclared
            | Self::DnsMismatch
            | Self::DialFailed
            | Self::Truncated
            | Self::HalfClosed
            | Self::Drained => "",
        }
    }

    /// Whether the end was in order for Entente's rules, so that nobody needs an Event about it.
    pub const fn is_routine(self) -> bool {
        matches!(self, Self::Truncated | Self::HalfClosed | Self::Drained | Self::DialFailed)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail() {
            "" => f.write_str(self.code()),
            detail => write!(f, "{} [{detail}]", self.code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_details_print_as_the_stable_strings() {
        assert_eq!(Refusal::NotTls.to_string(), "NotTls");
        assert_eq!(Refusal::BadName(NameDetail::SeveralIdentities).to_string(), "BadName [severalIdentities]");
    }

    #[test]
    fn the_wire_form_of_a_detail_is_its_text() {
        for detail in NameDetail::ALL {
            let written = serde_json::to_value(detail).unwrap();
            assert_eq!(written, detail.text());
        }
    }
}
