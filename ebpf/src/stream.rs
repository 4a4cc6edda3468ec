//! Connections to the ports where the container runtime's service serves streams: an exec for which nobody connected is a
//! synchronous one. Counted in memory, not told one by one: the agent looks when an exec comes.

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::{map, raw_tracepoint},
    maps::{Array, PerCpuArray},
    programs::RawTracePointContext,
};
use seclog_abi::{CONNECTIONS_KEPT, Connections, STREAM_PORTS_MAX, StreamPorts};

use crate::kernel::{self, Pointer, offset};

/// States of a TCP socket (include/net/tcp_states.h).
const ESTABLISHED: i32 = 1;
const SYN_RECEIVED: i32 = 3;
const LISTEN: i32 = 10;

/// What the agent wants to know of.
#[map]
static STREAM_PORTS: Array<StreamPorts> = Array::with_max_entries(1, 0);

#[map]
static CONNECTIONS: PerCpuArray<Connections> = PerCpuArray::with_max_entries(1, 0);

// match-proto:v5.10:include/trace/events/sock.h:inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
fn inet_sock_set_state(context: RawTracePointContext) -> i32 {
    let (before, now) = (context.arg::<i32>(1), context.arg::<i32>(2));
    // Of the two ends of a connection, only the one that was connected to comes out of SYN_RECEIVED.
    let is_connected = before == SYN_RECEIVED && now == ESTABLISHED;
    if is_connected || now == LISTEN {
        note(context.arg(0), is_connected);
    }
    0
}

#[inline(always)]
fn note(socket: Pointer, is_connected: bool) {
    let Some(wanted) = STREAM_PORTS.get(0) else { return };
    let namespace = kernel::read::<u32>(kernel::pointer(socket, offset!(sock_net)), offset!(net_inum)).unwrap_or(0);
    if namespace == 0 || namespace != wanted.net_namespace {
        return;
    }
    let Some(connections) = CONNECTIONS.get_ptr_mut(0) else { return };
    // SAFETY: a helper without arguments.
    let time_boot_ns = unsafe { bpf_ktime_get_boot_ns() };
    if !is_connected {
        // SAFETY: this CPU's entry; a plain word.
        unsafe { (*connections).listened_boot_ns = time_boot_ns };
        return;
    }
    let port = u32::from(kernel::read::<u16>(socket, offset!(sock_port)).unwrap_or(0));
    for index in 0..STREAM_PORTS_MAX {
        if wanted.ports[index] == port {
            // SAFETY: this CPU's entry. A connection is made in softirq, which no other softirq interrupts on its CPU.
            unsafe {
                let place = (*connections).count as usize % CONNECTIONS_KEPT;
                (*connections).times_boot_ns[place] = time_boot_ns;
                (*connections).count += 1;
            }
            return;
        }
    }
}
