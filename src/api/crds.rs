//! The CustomResourceDefinitions as files: written by `entente crds`, compared by a test.

use kube::CustomResourceExt;

use super::{FederationPartner, TrustDomain, TrustedServer};

/// File name and YAML of every kind.
pub fn render() -> Result<Vec<(&'static str, String)>, serde_saphyr::ser::Error> {
    let files = [
        ("trustdomains.yaml", TrustDomain::crd()),
        ("trustedservers.yaml", TrustedServer::crd()),
        ("federationpartners.yaml", FederationPartner::crd()),
    ];
    files.into_iter().map(|(name, crd)| Ok((name, serde_saphyr::to_string(&crd)?))).collect()
}

/// The same for the chart: behind its value `crds.enabled`, kept on uninstall by `crds.keep`.
pub fn templated(yaml: &str) -> String {
    let keep =
        "metadata:\n  {{- if .Values.crds.keep }}\n  annotations:\n    helm.sh/resource-policy: keep\n  {{- end }}\n";
    format!("{{{{- if .Values.crds.enabled }}}}\n{}{{{{- end }}}}\n", yaml.replacen("metadata:\n", keep, 1))
}
