//! The TCP ports on which a process listens, from /proc.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
};

use seclog_abi::STREAM_PORTS_MAX;

/// TCP_LISTEN in include/net/tcp_states.h, as /proc writes it.
const LISTEN: &str = "0A";
/// Descriptors of the process that are looked at: containerd has a few for each container.
const MOST_DESCRIPTORS: usize = 65_536;
/// Sockets of the network namespace that are looked at.
const MOST_SOCKETS: usize = 1 << 20;

/// Where a process can be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Inode number of its network namespace.
    pub net_namespace: u32,
    /// In order; at least one.
    pub ports: Vec<u16>,
    /// No socket of that namespace has a connection at one of these ports, or had one in the last minute (TIME_WAIT).
    pub is_idle: bool,
}

// === impl Listening ===

impl Listening {
    /// `None` where it listens nowhere, on too many ports, or /proc does not tell all of them.
    pub fn of(proc: &Path, pid: u32) -> Option<Self> {
        let directory = proc.join(pid.to_string());
        Self::of_sockets(&directory, &sockets(&directory.join("fd"))?)
    }

    fn of_sockets(directory: &Path, own: &HashSet<u64>) -> Option<Self> {
        let link = fs::read_link(directory.join("ns/net")).ok()?;
        let net_namespace = link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
        let mut ports = Vec::new();
        let mut connected = HashSet::new();
        let mut rows = 0;
        for name in ["tcp", "tcp6"] {
            let file = match fs::File::open(directory.join("net").join(name)) {
                Ok(file) => file,
                // Without IPv6.
                Err(error) if name == "tcp6" && error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(_) => return None,
            };
            for line in BufReader::new(file).lines().skip(1) {
                let socket = socket(&line.ok()?)?;
                if !socket.is_listening {
                    // Its other end may be here as well, and remembered longer.
                    connected.extend([socket.port, socket.peer_port]);
                } else if own.contains(&socket.inode) {
                    ports.push(socket.port);
                }
                rows += 1;
                if rows > MOST_SOCKETS {
                    return None;
                }
            }
        }
        ports.sort_unstable();
        ports.dedup();
        let is_idle = !ports.iter().any(|port| connected.contains(port));
        (1..=STREAM_PORTS_MAX).contains(&ports.len()).then_some(Self { net_namespace, ports, is_idle })
    }

    /// Whether both are the same ports.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.net_namespace, &self.ports) == (other.net_namespace, &other.ports)
    }
}

/// Inode numbers of the sockets among a process's descriptors.
fn sockets(descriptors: &Path) -> Option<HashSet<u64>> {
    let mut found = HashSet::new();
    for (count, entry) in fs::read_dir(descriptors).ok()?.enumerate() {
        if count >= MOST_DESCRIPTORS {
            return None;
        }
        // One that was closed meanwhile.
        let Ok(target) = fs::read_link(entry.ok()?.path()) else { continue };
        let inode: Option<u64> =
            target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        found.extend(inode);
    }
    Some(found)
}

struct Socket {
    port: u16,
    peer_port: u16,
    is_listening: bool,
    inode: u64,
}

/// A line of /proc/net/tcp: `sl local rem st tx:rx tr:when retrnsmt uid timeout inode …` (Documentation/networking/proc_net_tcp.rst).
fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace();
    let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    let (own, peer, state) = (fields.nth(1)?, fields.next()?, fields.next()?);
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Socket { port: port(own)?, peer_port: port(peer)?, is_listening: state == LISTEN, inode })
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::{TcpListener, TcpStream},
        os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
        path::Path,
    };

    use super::{Listening, socket, sockets};

    #[test]
    fn a_line_of_proc_tells_port_state_and_inode() {
        let line = "   0: 0100007F:9DA9 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1377719 1 0 100 0";
        let found = socket(line).unwrap();
        assert_eq!((found.port, found.is_listening, found.inode), (0x9da9, true, 1_377_719));
        let line = "  12: 00000000000000000000000001000000:0016 00000000000000000000000001000000:9C40 06 00000000:00000000 \
                    03:00000000 00000000     0        0 0 3 0";
        assert!(!socket(line).unwrap().is_listening);
        assert!(socket("   0: 0100007F:9DA9").is_none() && socket("").is_none());
    }

    #[test]
    fn a_process_is_found_where_it_listens_and_whether_somebody_is_connected() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // Other tests of this process listen as well.
        let inode = fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap().ino();
        assert!(sockets(Path::new("/proc/self/fd")).unwrap().contains(&inode));
        let of = |inode| Listening::of_sockets(Path::new("/proc/self"), &[inode].into());
        let found = of(inode).unwrap();
        assert!(found.ports == [address.port()] && found.is_idle && found.net_namespace != 0, "{found:?}");
        let client = TcpStream::connect(address).unwrap();
        assert!(!of(inode).unwrap().is_idle);
        // The end that closes first is remembered, and here that is the client's.
        drop(client);
        drop(listener.accept());
        assert!(!of(inode).unwrap().is_idle);
        assert_eq!(of(u64::MAX), None);
    }
}
