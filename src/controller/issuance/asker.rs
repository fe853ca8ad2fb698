//! Who asks: the API server's word on the token and on the pod, and the topology's on what that pod is.

use std::{collections::BTreeSet, sync::Arc};

use axum::http::{HeaderMap, StatusCode, header::AUTHORIZATION};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};

use super::{Denial, unavailable};
use crate::{
    brief::TOKEN_AUDIENCE,
    controller::{apply::within, view::View},
    identity::DnsName,
    pki::authority::Authority,
    topology::{Domain, Server, facts::PodFacts},
};

/// Bound of a token, in bytes.
const MAX_TOKEN: usize = 8_192;

/// Who asks, as the API server vouches for it.
pub(super) struct Asker {
    pub(super) namespace: String,
    pub(super) account: String,
    pub(super) pod: String,
    pub(super) uid: String,
    /// Id of the token, where the API server tells it.
    pub(super) credential: Option<String>,
}

/// What a pod is.
pub(super) struct Attested {
    pub(super) server: Server,
    pub(super) domain: Domain,
    pub(super) names: BTreeSet<DnsName>,
    pub(super) authority: Arc<Authority>,
    pub(super) anchors: Vec<String>,
    pub(super) revision: Option<u64>,
}

/// The token that a request brings.
pub(super) fn token(headers: &HeaderMap) -> Result<&str, Denial> {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let none = || Denial::new(StatusCode::UNAUTHORIZED, "TokenInvalid", "the request carries no bearer token");
    token.filter(|token| token.len() <= MAX_TOKEN).ok_or_else(none)
}

/// The API server's word on the token; nothing of the token itself is read here.
pub(super) async fn review(client: &Client, token: &str) -> Result<Asker, Denial> {
    let denied = |code: &'static str, message: String| Denial::new(StatusCode::UNAUTHORIZED, code, message);
    let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) };
    let review = TokenReview { spec, ..TokenReview::default() };
    let api = Api::<TokenReview>::all(client.clone());
    let review = within(api.create(&PostParams::default(), &review)).await.map_err(|error| unavailable(&error))?;
    let status = review.status.unwrap_or_default();
    if status.authenticated != Some(true) {
        return Err(denied("TokenInvalid", status.error.unwrap_or_else(|| "the token is not valid".to_owned())));
    }
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(denied("WrongAudience", format!("the token is not meant for {TOKEN_AUDIENCE}")));
    }
    let user = status.user.unwrap_or_default();
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(&format!("authentication.kubernetes.io/{key}")).map(Vec::as_slice) {
        Some([value]) => Some(value.clone()),
        _ => None,
    };
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match (account, one("pod-name"), one("pod-uid")) {
        (Some((namespace, account)), Some(pod), Some(uid)) => Ok(Asker {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            pod,
            uid,
            credential: one("credential-id"),
        }),
        _ => Err(denied("TokenNotPodBound", "the token is not bound to a pod".to_owned())),
    }
}

/// The pod as it is now, and the name of its node.
pub(super) async fn live_pod(client: &Client, asker: &Asker) -> Result<(PodFacts, Option<String>), Denial> {
    let api = Api::<Pod>::namespaced(client.clone(), &asker.namespace);
    let found = within(api.get_opt(&asker.pod)).await.map_err(|error| unavailable(&error))?;
    let denied = |code: &'static str, message: String| Denial::new(StatusCode::FORBIDDEN, code, message);
    let gone = || denied("PodNotFound", format!("pod {} is gone", asker.pod));
    let pod = found.ok_or_else(gone)?;
    let facts = PodFacts::of(&pod);
    if facts.uid != asker.uid {
        return Err(gone());
    }
    if facts.ending {
        return Err(denied("PodTerminating", format!("pod {} is ending", asker.pod)));
    }
    if facts.service_account != asker.account {
        let Asker { account, pod, .. } = asker;
        let message = format!("the token is {account}'s, pod {pod} runs under {}", facts.service_account);
        return Err(denied("ServiceAccountMismatch", message));
    }
    Ok((facts, pod.spec.and_then(|spec| spec.node_name)))
}

/// The server that the pod is, its domain, its names and the authority that signs.
pub(super) fn attested(view: &View, pod: &PodFacts) -> Result<Attested, Denial> {
    let server = view
        .topology
        .attest(pod)
        .map_err(|unattested| Denial::new(StatusCode::FORBIDDEN, unattested.code(), unattested.to_string()))?;
    let not_ready = || {
        let message = format!("TrustDomain {} has no sound authority", server.domain);
        Denial::new(StatusCode::SERVICE_UNAVAILABLE, "AuthorityNotReady", message)
    };
    let domain = view.topology.domain(&server.domain).ok_or_else(not_ready)?;
    let seen = view.domains.get(&server.domain).ok_or_else(not_ready)?;
    Ok(Attested {
        server: server.clone(),
        domain: domain.clone(),
        names: view.topology.names_of(server, pod),
        authority: seen.authority.clone().ok_or_else(not_ready)?,
        anchors: seen.trust.everybody.scope().anchors.clone(),
        revision: seen.at().map(|at| at.revision),
    })
}
