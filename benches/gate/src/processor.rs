//! What decides which path cryptography takes, and so how many instructions it has.

/// The architecture, and of its extensions those that AWS-LC and the C library choose by.
pub(crate) fn shown() -> String {
    let mut words = vec![std::env::consts::ARCH];
    words.extend(extensions());
    words.join(" ")
}

#[cfg(target_arch = "x86_64")]
fn extensions() -> impl Iterator<Item = &'static str> {
    use std::arch::is_x86_feature_detected as shows;
    let shown = [
        (shows!("aes"), "aes"),
        (shows!("pclmulqdq"), "pclmulqdq"),
        (shows!("ssse3"), "ssse3"),
        (shows!("avx"), "avx"),
        (shows!("avx2"), "avx2"),
        (shows!("bmi2"), "bmi2"),
        (shows!("adx"), "adx"),
        (shows!("sha"), "sha"),
        (shows!("rdrand"), "rdrand"),
        (shows!("vaes"), "vaes"),
        (shows!("avx512f"), "avx512f"),
    ];
    shown.into_iter().filter(|(shown, _)| *shown).map(|(_, name)| name)
}

#[cfg(not(target_arch = "x86_64"))]
fn extensions() -> impl Iterator<Item = &'static str> {
    std::iter::empty()
}
