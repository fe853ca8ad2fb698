#[derive(Clone, Debug)]
pub(crate) struct Sample { pub(crate) block: usize, pub(crate) peer: String, pub(crate) metric: String, pub(crate) value: f64 }
