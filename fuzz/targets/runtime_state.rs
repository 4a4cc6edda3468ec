//! What the container runtime says of a container, on disk and by CRI: any bytes are read or refused, and what is read has its
//! bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use seclog_agent::container::{Known, State};
use seclog_proto::cri::CriContainerStatus;
use std::{fs, path::PathBuf, sync::OnceLock};

const ID: &str = "beb1ef43f6c3fc5f918a0c47afee9630c10966b3b567adeef3a9abe2eb180dd2";

fn states() -> &'static (PathBuf, Vec<State>) {
    static STATES: OnceLock<(PathBuf, Vec<State>)> = OnceLock::new();
    STATES.get_or_init(|| {
        let shm = std::path::Path::new("/dev/shm");
        let own = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap().keep();
        let crio = own.join("overlay-containers");
        let file = crio.join(ID).join("userdata/config.json");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        (file, State::find(&[crio]))
    })
}

fn holds(known: &Known) {
    assert!(known.facts.own_environment.len() <= 8);
    assert!(known.facts.own_environment.iter().all(|variable| variable.starts_with("A=") && variable.len() <= 256));
}

fuzz_target!(|data: &[u8]| {
    let wanted = ["A".to_owned()];
    let (file, states) = states();
    fs::write(file, data).unwrap();
    if let Ok(Some(known)) = states[0].read(ID, &wanted) {
        assert!(!known.pod_name.is_empty());
        holds(&known);
    }
    if let Ok(info) = std::str::from_utf8(data) {
        holds(&Known::of_status(CriContainerStatus::default(), Some(info), &wanted));
    }
});
