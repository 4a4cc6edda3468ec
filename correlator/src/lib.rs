//! The correlator: joins who asked (audit records of the kube-apiserver) with what ran (records of the nodes).

pub mod audit;
