//! Certificates: requests, the authority that signs, bundles of roots, and the one verification function.
