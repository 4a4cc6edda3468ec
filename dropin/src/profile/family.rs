//! Syscalls that do one thing under several names: whoever logs one wants the others.

/// Starting a program.
pub const EXEC: &[&str] = &["execve", "execveat"];
/// Starting a process. glibc's posix_spawn and system() use clone3 or vfork where the kernel has them, never fork.
const FORK: &[&str] = &["clone", "clone3", "fork", "vfork"];
/// Both.
pub const PROCESS: &[&str] = &["execve", "execveat", "clone", "clone3", "fork", "vfork"];

const FAMILIES: [&[&str]; 2] = [EXEC, FORK];

/// Members of a family of which `names` has some but not all.
pub fn missing_siblings<'a>(names: impl Fn(&str) -> bool + 'a) -> Vec<&'static str> {
    FAMILIES
        .iter()
        .filter(|family| family.iter().any(|n| names(n)))
        .flat_map(|family| family.iter().copied().filter(|n| !names(n)))
        .collect()
}

/// `names` in order without repetition, followed by the siblings they lack.
pub fn with_siblings(names: &[String]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for name in names {
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    let missing = missing_siblings(|n| all.iter().any(|a| a == n));
    all.extend(missing.into_iter().map(str::to_owned));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_names_clone_gets_clone3_fork_and_vfork() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            with_siblings(&names(&["execve", "clone"])),
            ["execve", "clone", "execveat", "clone3", "fork", "vfork"]
        );
        assert_eq!(with_siblings(&names(&["getpid", "getpid"])), ["getpid"]);
    }
}
