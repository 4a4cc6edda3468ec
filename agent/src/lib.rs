//! seclog-agent: what happens in containers of one node, as node records.
//!
//! The way of a record: `capture` → `pipeline` (`lineage`, `fuse`, `container`) → `uplink`. Each arrow is one direction.

pub mod abi_names;
pub mod absence;
pub mod capture;
pub mod check;
pub mod clock;
pub mod container;
pub mod credentials;
pub mod drive;
pub mod fuse;
pub mod lineage;
pub mod memory;
pub mod pipeline;
pub mod quiet;
pub mod record;
pub mod run;
pub mod telemetry;
pub mod throttle;
pub mod uplink;
