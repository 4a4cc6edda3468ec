//! What the check says: findings with stable codes.

use std::fmt;

use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Logging does not work as configured, or the node is at risk. Exit 1.
    Error,
    /// It works less well than it looks, or will stop working. Exit 1.
    Warning,
    /// Could not be seen from here. Exit 0, or 2 where nothing can be said without it.
    Unknown,
    /// Good to know.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Note => "note",
        })
    }
}

/// A file on the node, and a line of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    pub file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

impl Place {
    pub fn line(file: impl Into<String>, line: u32) -> Self {
        Self { file: file.into(), line: Some(line) }
    }

    pub fn file(file: impl Into<String>) -> Self {
        Self { file: file.into(), line: None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// One thing the check has to say. Texts may quote the node's files: whoever prints them escapes control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub code: Code,
    pub severity: Severity,
    /// What is wrong.
    pub what: String,
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What follows from it.
    pub consequence: String,
    /// What to do.
    pub action: String,
}

impl Finding {
    pub(crate) fn new(code: Code, severity: Severity, what: impl Into<String>) -> Self {
        Self { code, severity, what: what.into(), place: None, consequence: String::new(), action: String::new() }
    }

    pub(crate) fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    pub(crate) fn so(mut self, consequence: impl Into<String>) -> Self {
        self.consequence = consequence.into();
        self
    }

    pub(crate) fn fix(mut self, action: impl Into<String>) -> Self {
        self.action = action.into();
        self
    }
}

macro_rules! codes {
    ($($variant:ident = $name:literal, $about:literal;)+) => {
        /// Stable names of findings: scripts and dashboards may rely on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($variant,)+ }

        impl Code {
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One line for the documentation.
            pub fn about(self) -> &'static str {
                match self { $(Self::$variant => $about,)+ }
            }
        }
    };
}

codes! {
    NoCrioConfig = "no-crio-config", "no CRI-O configuration was found below the root";
    VersionUnknown = "version-unknown", "neither the socket, a file nor --crio-version tells CRI-O's version";
    VersionUntested = "version-untested", "CRI-O is older or newer than the versions this check knows";
    VersionConflict = "version-conflict", "--crio-version disagrees with what the node says";
    ConfigUnreadable = "config-unreadable", "a configuration file that CRI-O reads cannot be read";
    ConfigSyntax = "config-syntax", "a configuration file is not TOML";
    ConfigType = "config-type", "an option has a value of the wrong type";
    ConfigStrayFile = "config-stray-file", "a backup or editor file in crio.conf.d is read like any other";
    ConfigLimit = "config-limit", "more or larger files than this check reads";
    OptionRemoved = "option-removed", "this CRI-O version no longer reads an option";
    OptionTooNew = "option-too-new", "this CRI-O version does not read an option yet";
    OptionMisplaced = "option-misplaced", "an option stands in a table where it is not read";
    OptionUnknown = "option-unknown", "no CRI-O version reads an option";
    DefaultWeakened = "default-weakened", "seccomp_use_default_when_empty = false lets pods run unconfined";
    DropinMissing = "dropin-missing", "nothing makes CRI-O log: neither seccomp option is set";
    DropinOverridden = "dropin-overridden", "a later file takes back what a drop-in sets";
    PrivilegedNotLogged = "privileged-not-logged", "privileged_seccomp_profile is not set, so debug and other privileged pods are not logged";
    PrivilegedUnsupported = "privileged-unsupported", "this CRI-O version cannot log privileged containers";
    WorkloadNotLogged = "workload-not-logged", "seccomp_profile is not set, so RuntimeDefault does not log";
    HandlerReplaced = "handler-replaced", "a drop-in replaced a handler table and dropped its other fields";
    WorkloadReplaced = "workload-replaced", "a drop-in replaced a workload table and dropped its other fields";
    HandlerNotDefault = "handler-not-default", "a drop-in configures a handler that ordinary pods do not use";
    HandlerUndefined = "handler-undefined", "default_runtime names a handler without a table";
    HandlerBinaryMissing = "handler-binary-missing", "the program of a handler is not on the node";
    HandlerAnnotationInvalid = "handler-annotation-invalid", "allowed_annotations has a name this CRI-O version refuses";
    HandlerRoot = "handler-root", "a handler without runtime_root uses another runtime's directory";
    HandlerProfileWins = "handler-profile-wins", "a handler's own seccomp_profile wins over the global one";
    TraceSyscallAnnotation = "trace-syscall-annotation", "io.containers.trace-syscall does not make anything log";
    PrivilegedProfileMissing = "privileged-profile-missing", "the file of privileged_seccomp_profile does not exist: no privileged pod starts";
    PrivilegedProfileDenies = "privileged-profile-denies", "the privileged profile denies syscalls, which breaks node services";
    RuntimeProfileMissing = "runtime-profile-missing", "the file of seccomp_profile does not exist";
    RuntimeProfileWeakens = "runtime-profile-weakens", "the profile for ordinary pods allows what the runtime's default denies";
    ProfilePathRelative = "profile-path-relative", "a profile path is not absolute";
    ProfilePathVolatile = "profile-path-volatile", "a profile lies where it may be missing on a fresh node or after boot";
    ProfileUnreadable = "profile-unreadable", "a profile file cannot be read";
    ProfileSyntax = "profile-syntax", "a profile is not JSON of the expected form";
    ProfileLogsNothing = "profile-logs-nothing", "a profile has no rule that logs";
    ProfileMissesExec = "profile-misses-exec", "a profile logs something, but not execve";
    ProfilePartial = "profile-partial", "a profile logs a syscall but not its siblings";
    ProfileConflict = "profile-conflict", "a profile gives one syscall two actions without conditions";
    ProfileLogsAll = "profile-logs-all", "a profile logs every syscall it does not name";
    ProfileNativeArch = "profile-native-arch", "a profile without archMap ends programs of other architectures";
    ProfilePermissions = "profile-permissions", "others than root may change a profile or a drop-in";
    ProfileLabel = "profile-label", "a profile file has an SELinux label from elsewhere";
    SysconfigFlag = "sysconfig-flag", "a seccomp flag or environment variable of the service is lost at the next reload";
    SysconfigLine = "sysconfig-line", "a line of /etc/sysconfig/crio is not NAME=VALUE and is ignored";
    SocketUnknown = "socket-unknown", "CRI-O's socket is not mounted, so its live configuration is unknown";
    LiveDiffers = "live-differs", "CRI-O runs with other settings than its files say";
    LiveHandlerDropped = "live-handler-dropped", "CRI-O dropped a handler that the files declare";
    ChangedSinceStart = "changed-since-start", "a file changed after CRI-O started; whether it was loaded is unknown";
    ActionsLogged = "actions-logged", "kernel.seccomp.actions_logged does not contain log";
    SeccompUnavailable = "seccomp-unavailable", "the kernel does not offer the log action";
    AuditOff = "audit-off", "audit=0 on the kernel command line";
    AuditDisabled = "audit-disabled", "auditing is switched off, which SECCOMP records do not mind";
    AuditUnknown = "audit-unknown", "the kernel's audit status cannot be read";
    AuditBacklog = "audit-backlog", "a small audit backlog slows workloads or loses records in bursts";
    AuditLost = "audit-lost", "the kernel lost audit records since boot";
    AuditRuleExcludes = "audit-rule-excludes", "an audit rule excludes SECCOMP records";
    AuditdAbsent = "auditd-absent", "auditd does not run, so nothing keeps records across a restart of the agent";
    HooksMissing = "hooks-missing", "the kernel offers no hook for verdicts";
    HooksUnknown = "hooks-unknown", "which hooks the kernel offers cannot be seen";
    ContainersUnknown = "containers-unknown", "running containers cannot be seen";
    ContainersNotLogging = "containers-not-logging", "running containers of a namespace do not log";
    ContainersOlder = "containers-older", "privileged containers were created before the profile took effect";
}

impl Code {
    /// Without this the check has nothing to say: exit 2 unless there are problems anyway.
    pub fn prevents_check(self) -> bool {
        matches!(self, Self::NoCrioConfig | Self::VersionUnknown | Self::ConfigLimit)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
