//! Records of partners' trust as ConfigMaps of our own namespace, `entente-partner-HASH`: out of everybody else's reach.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams};

use crate::{
    controller::{
        apply::{ApplyError, within},
        stores::PART,
    },
    pki,
    topology::{
        PartnerKey,
        kept::{Kept, KeptSeen},
    },
};

/// The value of our label on them.
pub(in crate::controller) const LABEL: &str = "partner-trust";
/// Annotation that names the partner.
const PARTNER: &str = "entente.dev/partner";
/// The key that holds the record.
const RECORD: &str = "record.json";

/// `entente-partner-HASH`: names of partners with their namespaces are longer than a ConfigMap's may be.
fn name(key: &PartnerKey) -> String {
    format!("entente-partner-{}", &pki::sha256_hex(key.to_string().as_bytes())[..16])
}

/// Whose record a ConfigMap is, and what it says.
pub(in crate::controller) fn read(map: &ConfigMap) -> Option<(PartnerKey, KeptSeen)> {
    let owner = map.metadata.annotations.as_ref()?.get(PARTNER)?;
    let (namespace, partner) = owner.split_once('/')?;
    let key = PartnerKey { namespace: namespace.to_owned(), name: partner.to_owned() };
    let found = map.metadata.name.clone()?;
    // A copy under another name is nobody's record.
    if found != name(&key) {
        return None;
    }
    let text = map.data.as_ref().and_then(|data| data.get(RECORD));
    let record = text.and_then(|text| serde_json::from_str::<Kept>(text).ok()).map(Arc::new);
    Some((key, KeptSeen { name: found, version: map.metadata.resource_version.clone(), record }))
}

/// Writes a record over the version that it was planned on, or a first one where there is none.
pub(in crate::controller) async fn write(
    client: &Client,
    namespace: &str,
    (key, version): (&PartnerKey, Option<String>),
    record: &Kept,
) -> Result<(), ApplyError> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let map = map(key, version.clone(), record)?;
    match version {
        Some(_) => drop(within(api.replace(&name(key), &PostParams::default(), &map)).await?),
        None => drop(within(api.create(&PostParams::default(), &map)).await?),
    }
    Ok(())
}

fn map(key: &PartnerKey, version: Option<String>, record: &Kept) -> Result<ConfigMap, ApplyError> {
    let text = serde_json::to_string(record).map_err(|error| ApplyError::Register(error.to_string()))?;
    let owned = |pairs: [(&str, &str); 2]| -> BTreeMap<String, String> {
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    };
    let owner = key.to_string();
    Ok(ConfigMap {
        metadata: ObjectMeta {
            name: Some(name(key)),
            labels: Some(owned([(PART, LABEL), ("app.kubernetes.io/managed-by", "entente")])),
            annotations: Some([(PARTNER.to_owned(), owner)].into()),
            resource_version: version,
            ..ObjectMeta::default()
        },
        data: Some([(RECORD.to_owned(), text)].into()),
        ..ConfigMap::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written_and_a_copy_of_it_is_nobodys() {
        let key = PartnerKey { namespace: "edge".to_owned(), name: "fabrikam".to_owned() };
        let kept = Kept { uid: "u".to_owned(), pem: "roots".to_owned(), fetched: 7, ..Kept::default() };
        let mut map = map(&key, Some("9".to_owned()), &kept).unwrap();
        let seen = KeptSeen { name: name(&key), version: Some("9".to_owned()), record: Some(Arc::new(kept)) };
        assert_eq!(read(&map), Some((key.clone(), seen.clone())));
        map.data = Some([(RECORD.to_owned(), "nonsense".to_owned())].into());
        assert_eq!(read(&map), Some((key, KeptSeen { record: None, ..seen })));
        map.metadata.name = Some("entente-partner-copy".to_owned());
        assert_eq!(read(&map), None);
    }
}
