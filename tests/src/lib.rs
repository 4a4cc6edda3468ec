//! The laboratory of the end-to-end tests and of `make demo`: real containers under containerd, real kernels in QEMU,
//! audit events as a kube-apiserver sends them, and the two programs of seclog between them.

pub mod bench;
pub mod lab;
pub mod recordings;
