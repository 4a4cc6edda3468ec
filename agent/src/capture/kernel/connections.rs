//! The count of connections that the kernel programs keep ([`seclog_abi::Connections`]).

use std::os::fd::AsFd as _;

use aya::{
    maps::{Array, MapData, PerCpuArray},
    programs::ProgramFd,
};
use seclog_abi::{CONNECTIONS_KEPT, Connections, STREAM_PORTS_MAX, StreamPorts};

use super::{info, load::with_causes};
use crate::lineage::{Connection, ConnectionCount, Counted, Listening};

/// The counting program is attached as long as the programs are.
pub struct KernelConnections {
    ports: Array<MapData, StreamPortsValue>,
    connections: PerCpuArray<MapData, ConnectionsValue>,
    program: ProgramFd,
}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct StreamPortsValue(StreamPorts);
// SAFETY: StreamPorts is plain data (seclog_abi::Plain).
unsafe impl aya::Pod for StreamPortsValue {}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct ConnectionsValue(Connections);
// SAFETY: Connections is plain data (seclog_abi::Plain).
unsafe impl aya::Pod for ConnectionsValue {}

// === impl KernelConnections ===

impl KernelConnections {
    pub(super) fn new(
        ports: Array<MapData, StreamPortsValue>,
        connections: PerCpuArray<MapData, ConnectionsValue>,
        program: ProgramFd,
    ) -> Self {
        Self { ports, connections, program }
    }
}

impl std::fmt::Debug for KernelConnections {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("KernelConnections").finish_non_exhaustive()
    }
}

impl ConnectionCount for KernelConnections {
    fn count_at(&mut self, listening: Option<&Listening>) -> Result<(), String> {
        let mut value = StreamPorts::default();
        if let Some(Listening { net_namespace, ports, .. }) = listening {
            if ports.len() > STREAM_PORTS_MAX {
                return Err(format!("more than {STREAM_PORTS_MAX} ports"));
            }
            value.net_namespace = *net_namespace;
            value.ports.iter_mut().zip(ports).for_each(|(slot, port)| *slot = u32::from(*port));
        }
        self.ports.set(0, StreamPortsValue(value), 0).map_err(|error| with_causes(&error))
    }

    fn counted(&mut self) -> Option<Counted> {
        let missed = info::figures(self.program.as_fd())?.recursion_misses;
        let mut counted = Counted { missed, ..Counted::default() };
        for (cpu, ConnectionsValue(value)) in (0..).zip(self.connections.get(&0, 0).ok()?.iter()) {
            add(&mut counted, cpu, value);
        }
        Some(counted)
    }
}

/// What one CPU has.
fn add(counted: &mut Counted, cpu: u32, of_cpu: &Connections) {
    let Connections { count, listened_boot_ns, times_boot_ns } = of_cpu;
    counted.listened_boot_ns = counted.listened_boot_ns.max(*listened_boot_ns);
    let first = count.saturating_sub(CONNECTIONS_KEPT as u64);
    let time = |number: u64| times_boot_ns[(number % CONNECTIONS_KEPT as u64) as usize];
    if first > 0 {
        // What came before the oldest that is kept came no later than that.
        counted.whole_since_boot_ns = counted.whole_since_boot_ns.max(time(first));
    }
    counted.latest.extend((first..*count).map(|number| Connection { cpu, number, time_boot_ns: time(number) }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_connections_are_told_and_from_when_on_they_are_all() {
        let mut counted = Counted::default();
        let mut of_cpu = Connections { count: 2, listened_boot_ns: 7, times_boot_ns: [0; CONNECTIONS_KEPT] };
        of_cpu.times_boot_ns[..2].copy_from_slice(&[100, 200]);
        add(&mut counted, 1, &of_cpu);
        let connection = |cpu, number, time_boot_ns| Connection { cpu, number, time_boot_ns };
        assert_eq!(counted.latest, [connection(1, 0, 100), connection(1, 1, 200)]);
        assert_eq!((counted.whole_since_boot_ns, counted.listened_boot_ns), (0, 7));

        // The third round has begun: number 128 lies where 0 and 64 were.
        let kept = CONNECTIONS_KEPT as u64;
        let mut times_boot_ns = [0; CONNECTIONS_KEPT];
        (kept + 1..2 * kept + 1).for_each(|number| times_boot_ns[(number % kept) as usize] = 1_000 + number);
        let mut counted = Counted::default();
        add(&mut counted, 0, &Connections { count: 2 * kept + 1, listened_boot_ns: 0, times_boot_ns });
        assert_eq!(counted.latest.len(), CONNECTIONS_KEPT);
        assert_eq!(counted.latest.last(), Some(&connection(0, 2 * kept, 1_000 + 2 * kept)));
        assert_eq!(counted.whole_since_boot_ns, 1_000 + kept + 1);
    }
}
