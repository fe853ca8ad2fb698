//! The kinds of `entente.dev/v1alpha1`, and nothing else.
