//! Enters quiet mode when the hook delivers, leaves it when it does not, and says so in the hooks' status.

use std::{
    path::PathBuf,
    sync::{
        Weak,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use seclog_proto::v1::HookStatus;
use tokio::sync::watch;

use super::{QuietArgs, QuietError, QuietMode, QuietOptions, remove_left_behind, rule};
use crate::{capture, clock};

/// Its line in the hooks' status.
pub const STATUS: &str = "quiet/exclude_rule";

const TURN: Duration = Duration::from_secs(1);
/// Rules and listeners are looked at every so often.
const CHECK: Duration = Duration::from_secs(10);
/// The pipeline goes round at least twice a second. After so long without, the ring is filling up.
const STALLED: Duration = Duration::from_secs(5);
/// After a stall it must have gone round for so long before quiet mode is entered again.
const STEADY: Duration = Duration::from_secs(60);
/// So long after quiet mode was entered, a record made before may still come: kauditd can be that late.
const UNDER_WAY: Duration = Duration::from_secs(10);

/// What the pipeline and quiet mode tell each other. It exists as long as the hook is attached.
#[derive(Debug, Default)]
pub struct Pulse {
    /// The pipeline's sign of life: when the rings were drained.
    last_boot_ns: AtomicU64,
    /// Since when the kernel makes no audit records of verdicts; 0: it makes them.
    quiet_since_boot_ns: AtomicU64,
}

/// The thread that keeps quiet mode.
#[derive(Debug)]
pub struct Supervisor {
    thread: JoinHandle<()>,
    stop: SyncSender<()>,
}

/// What the pulse tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Draining,
    Stalled,
    Lost,
}

struct Loop {
    options: QuietOptions,
    hook_attached: bool,
    pulse: Weak<Pulse>,
    hooks: watch::Sender<Vec<HookStatus>>,
}

// === impl Pulse ===

impl Pulse {
    pub fn beat(&self) {
        self.last_boot_ns.store(clock::boot_ns(), Ordering::Relaxed);
    }

    /// No audit record of a verdict comes any more: not even one that was under way when quiet mode was entered.
    pub fn is_quiet(&self, now_boot_ns: u64) -> bool {
        let since = self.quiet_since_boot_ns.load(Ordering::Relaxed);
        since != 0 && now_boot_ns.saturating_sub(since) >= UNDER_WAY.as_nanos() as u64
    }

    fn is_fresh(&self, now_boot_ns: u64) -> bool {
        let last = self.last_boot_ns.load(Ordering::Relaxed);
        last != 0 && now_boot_ns.saturating_sub(last) < STALLED.as_nanos() as u64
    }
}

// === impl Supervisor ===

impl Supervisor {
    /// `None`: quiet mode is not wanted. A rule that a former run left behind is removed in any case.
    pub fn start(args: &QuietArgs, pulse: Weak<Pulse>, hooks: watch::Sender<Vec<HookStatus>>) -> Option<Self> {
        let Some(options) = args.options() else {
            clean_up(args.quiet_state.clone());
            return None;
        };
        let hook_attached = hooks.borrow().iter().any(|hook| hook.active && hook.name.starts_with("verdict/"));
        let (stop, stopped) = sync_channel(1);
        let keeper = Loop { options, hook_attached, pulse, hooks };
        match thread::Builder::new().name("quiet".into()).spawn(move || keeper.run(&stopped)) {
            Ok(thread) => Some(Self { thread, stop }),
            Err(error) => {
                tracing::error!(%error, "quiet mode cannot be entered; audit records go on");
                None
            }
        }
    }

    /// Leaves quiet mode. To be called while the hook still delivers, so that no verdict goes unseen.
    pub fn stop(self) {
        let Self { thread, stop } = self;
        let _ = stop.try_send(());
        if thread.join().is_err() {
            tracing::error!("quiet mode's thread ended by a panic; this is a defect");
        }
    }
}

fn clean_up(state: PathBuf) {
    if let Err(error) = remove_left_behind(&state) {
        tracing::warn!(%error, "what a former run's quiet mode left behind could not be cleared up");
    }
}

// === impl Loop ===

impl Loop {
    fn run(&self, stop: &Receiver<()>) {
        if self.hook_attached && !self.wait_until_steady(Duration::ZERO, stop) {
            return;
        }
        while self.quiet_once(stop) && self.wait_until_steady(STEADY, stop) {}
    }

    /// Enters, keeps and leaves; true when it may be entered again later.
    fn quiet_once(&self, stop: &Receiver<()>) -> bool {
        let mut quiet = match QuietMode::enter(self.options.clone(), self.hook_attached) {
            Ok(quiet) => quiet,
            Err(error) => {
                tracing::warn!(reason = %error, "quiet mode is not entered");
                self.tell(capture::inactive(STATUS, error));
                return false;
            }
        };
        tracing::info!(guard = quiet.guard_pid(), detail = quiet.describe(), "quiet mode is entered");
        self.tell(capture::active(STATUS, &quiet.describe()));
        self.tell_pipeline(clock::boot_ns());
        let reason = self.keep(&mut quiet, stop);
        // First: from here on verdicts wait for their audit record again.
        self.tell_pipeline(0);
        let again = matches!(reason, Some(QuietError::NotDraining));
        let made = quiet.made_the_rule();
        match quiet.leave() {
            Ok(()) => {
                let text = reason.map_or_else(|| "stopping".into(), |reason| reason.to_string());
                let rest = if made { "audit records are made again" } else { "the rule that was there stays" };
                tracing::info!(reason = text, "quiet mode is left: {rest}");
                self.tell(capture::inactive(STATUS, text));
            }
            Err(error) => {
                let text = format!("{error}: the kernel goes on without audit records of seccomp verdicts");
                tracing::error!(reason = text, "quiet mode cannot be left. Try `auditctl -d {}`", rule::AUDITCTL);
                self.tell(capture::inactive(STATUS, text));
            }
        }
        again
    }

    /// Until it must be left; `None`: because the agent stops.
    fn keep(&self, quiet: &mut QuietMode, stop: &Receiver<()>) -> Option<QuietError> {
        let mut checked = Instant::now();
        loop {
            if is_stopped(stop, TURN) {
                return None;
            }
            match self.hook() {
                Hook::Draining => {}
                Hook::Stalled => return Some(QuietError::NotDraining),
                Hook::Lost => return Some(QuietError::HookLost),
            }
            if checked.elapsed() >= CHECK {
                checked = Instant::now();
                if let Err(error) = quiet.check() {
                    return Some(error);
                }
            }
        }
    }

    /// False when there is nothing to wait for any more.
    fn wait_until_steady(&self, steady: Duration, stop: &Receiver<()>) -> bool {
        let mut since = Instant::now();
        loop {
            match self.hook() {
                Hook::Draining if since.elapsed() >= steady => return true,
                Hook::Draining => {}
                Hook::Stalled => since = Instant::now(),
                Hook::Lost => return false,
            }
            if is_stopped(stop, Duration::from_millis(100)) {
                return false;
            }
        }
    }

    fn hook(&self) -> Hook {
        match self.pulse.upgrade() {
            None => Hook::Lost,
            Some(pulse) if pulse.is_fresh(clock::boot_ns()) => Hook::Draining,
            Some(_) => Hook::Stalled,
        }
    }

    fn tell_pipeline(&self, quiet_since_boot_ns: u64) {
        if let Some(pulse) = self.pulse.upgrade() {
            pulse.quiet_since_boot_ns.store(quiet_since_boot_ns, Ordering::Relaxed);
        }
    }

    fn tell(&self, status: HookStatus) {
        self.hooks.send_modify(|hooks| match hooks.iter_mut().find(|hook| hook.name == status.name) {
            Some(hook) => *hook = status,
            None => hooks.push(status),
        });
    }
}

fn is_stopped(stop: &Receiver<()>, wait: Duration) -> bool {
    !matches!(stop.recv_timeout(wait), Err(RecvTimeoutError::Timeout))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Weak, mpsc::sync_channel},
        time::Duration,
    };

    use tokio::sync::watch;

    use super::{Hook, Loop, Pulse, QuietOptions, STALLED, STATUS, UNDER_WAY};
    use crate::clock;

    fn keeper(pulse: &Arc<Pulse>) -> Loop {
        let options =
            QuietOptions { force: false, state: "/nonexistent/x".into(), guard_program: "/nonexistent".into() };
        Loop { options, hook_attached: false, pulse: Arc::downgrade(pulse), hooks: watch::channel(Vec::new()).0 }
    }

    #[test]
    fn a_hook_is_draining_only_while_the_pipeline_goes_round() {
        let pulse = Arc::new(Pulse::default());
        let keeper = keeper(&pulse);
        assert_eq!(keeper.hook(), Hook::Stalled);
        pulse.beat();
        assert_eq!(keeper.hook(), Hook::Draining);
        assert!(!pulse.is_fresh(clock::boot_ns() + STALLED.as_nanos() as u64));
        drop(pulse);
        assert_eq!(keeper.hook(), Hook::Lost);
    }

    #[test]
    fn quiet_counts_only_when_no_record_can_be_under_way_any_more() {
        let pulse = Arc::new(Pulse::default());
        let keeper = keeper(&pulse);
        assert!(!pulse.is_quiet(u64::MAX));
        keeper.tell_pipeline(7);
        let under_way = UNDER_WAY.as_nanos() as u64;
        assert!(!pulse.is_quiet(6 + under_way) && pulse.is_quiet(7 + under_way));
        keeper.tell_pipeline(0);
        assert!(!pulse.is_quiet(u64::MAX));
    }

    #[test]
    fn without_a_hook_the_status_says_why_and_the_thread_ends() {
        let (_stop, stopped) = sync_channel(1);
        let keeper = Loop { pulse: Weak::new(), ..keeper(&Arc::default()) };
        keeper.run(&stopped);
        let hooks = keeper.hooks.borrow();
        assert_eq!((hooks.len(), hooks[0].name.as_str(), hooks[0].active), (1, STATUS, false));
        assert!(hooks[0].reason.contains("no eBPF hook"), "{}", hooks[0].reason);
    }

    #[test]
    fn a_lost_hook_ends_the_wait_for_it() {
        let (_stop, stopped) = sync_channel(1);
        let keeper = Loop { pulse: Weak::new(), ..keeper(&Arc::default()) };
        assert!(!keeper.wait_until_steady(Duration::ZERO, &stopped));
    }
}
