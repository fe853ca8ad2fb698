//! What the endpoint tells, and to whom it says nothing.

use std::collections::BTreeMap;

use axum::{body::Body, http::Request};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::mounted::pair;

async fn asked(method: &str, path: &str) -> (u16, String) {
    let public = [("bundle.json", "{}"), ("ca.crt", "roots"), ("crl.pem", "lists"), ("secret", "no")];
    let public = public.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let public = BTreeMap::from(public);
    let told: Told =
        Arc::new(move |domain, file| (domain == "contoso.example").then(|| public.get(file).cloned()).flatten());
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let answer = router(told).oneshot(request).await.unwrap();
    let status = answer.status().as_u16();
    (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

#[tokio::test]
async fn three_files_of_each_trust_domain_are_told_and_nothing_else() {
    for (path, expected) in [
        ("/contoso.example/bundle.json", (200, "{}")),
        ("/contoso.example/ca.crt", (200, "roots")),
        ("/contoso.example/crl.pem", (200, "lists")),
        ("/contoso.example/secret", (404, "")),
        ("/contoso/bundle.json", (404, "")),
        ("/fabrikam.example/bundle.json", (404, "")),
        ("/contoso.example/../bundle.json", (404, "")),
        ("/", (404, "")),
    ] {
        let (status, text) = asked("GET", path).await;
        assert_eq!((status, text.as_str()), expected, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        assert_eq!(asked(method, "/contoso.example/bundle.json").await.0, 405, "{method}");
    }
}

#[test]
fn the_certificate_is_followed_and_one_that_cannot_be_used_changes_nothing() {
    let folder = tempfile::TempDir::new().unwrap();
    let write = |certificate: &str, key: &str| {
        std::fs::write(folder.path().join("tls.crt"), certificate).unwrap();
        std::fs::write(folder.path().join("tls.key"), key).unwrap();
    };
    let mounted = Mounted::new(folder.path().to_owned());
    let shown = || {
        mounted.look();
        mounted.current().map(|certified| certified.key.cert.clone())
    };
    assert_eq!(shown(), None);
    let made = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["trust.contoso.example".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let ((one, its), (two, _)) = (made(), made());
    write(&one, &its);
    let first = Some(vec![crate::pki::certificate(&one).unwrap()]);
    assert_eq!(shown(), first);
    for (certificate, key) in [(two.as_str(), its.as_str()), ("nonsense", &its), (&one, "nonsense")] {
        write(certificate, key);
        assert!(pair(certificate.as_bytes(), key.as_bytes()).is_err());
        assert_eq!(shown(), first);
    }
}
