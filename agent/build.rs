//! Builds the kernel programs (../ebpf) and puts the object where the agent embeds it.
//!
//! Two toolchains can do it: Debian's own Rust with its ready-made `core` for BPF, or a rustup nightly with rust-src.
//! Whichever is found is taken; without either, and without bpf-linker, the error says what to install.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../ebpf/src");
    println!("cargo::rerun-if-changed=../ebpf/abi/src");
    println!("cargo::rerun-if-changed=../ebpf/Cargo.toml");
    println!("cargo::rerun-if-changed=../ebpf/Cargo.lock");
    println!("cargo::rerun-if-env-changed=SECLOG_BPF_LINKER");
    if let Err(problem) = build() {
        for line in problem.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: build.rs runs under cargo only")?);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf");
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let linker = linker()?;
    let (toolchain, mut cargo) = toolchain()?;
    let target_dir = out.join("ebpf");
    cargo
        .args(["build", "--release", "--locked", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(&source)
        .env(
            "RUSTFLAGS",
            format!(
                "--cfg=bpf_target_arch=\"{architecture}\" -C linker={} -C link-arg=--btf -C debuginfo=2 -C panic=abort",
                linker.display()
            ),
        );
    let result = cargo.output().map_err(|error| format!("could not run cargo of {toolchain}: {error}"))?;
    if !result.status.success() {
        return Err(format!(
            "building the kernel programs with {toolchain} failed:\n{}",
            String::from_utf8_lossy(&result.stderr)
        ));
    }
    let object = target_dir.join(TARGET).join("release/seclog");
    fs::copy(&object, out.join("seclog.bpf.o"))
        .map_err(|error| format!("could not copy {}: {error}", object.display()))?;
    Ok(())
}

/// A cargo that can build for BPF, free of this build's own settings.
fn toolchain() -> Result<(&'static str, Command), String> {
    let debian = Path::new("/usr/lib/rustlib").join(TARGET).join("lib").is_dir()
        && Path::new("/usr/bin/cargo").exists()
        && Path::new("/usr/bin/rustc").exists();
    if debian {
        let mut cargo = clean("/usr/bin/cargo");
        cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
        return Ok(("Debian's Rust", cargo));
    }
    let sysroot = clean("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    if let Ok(result) = sysroot
        && result.status.success()
        && Path::new(String::from_utf8_lossy(&result.stdout).trim()).join("lib/rustlib/src/rust/library").is_dir()
    {
        let mut cargo = clean("rustup");
        cargo.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
        return Ok(("rustup's nightly", cargo));
    }
    Err("no Rust toolchain that can build for BPF was found. Install one of:\n\
         - on Debian 12: apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf\n\
         - elsewhere: rustup toolchain install nightly --component rust-src"
        .into())
}

/// Cargo tells its build scripts much by the environment that must not reach another cargo.
fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let keep = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_SOURCE_", "RUSTUP_HOME"];
        let ours = ["CARGO", "RUST", "CLIPPY"].iter().any(|prefix| text.starts_with(prefix));
        if ours && !keep.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

fn linker() -> Result<PathBuf, String> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    env::var_os("SECLOG_BPF_LINKER")
        .map(PathBuf::from)
        .into_iter()
        .chain(env::split_paths(&path).map(|directory| directory.join("bpf-linker")))
        .chain(home.map(|home| home.join("bin/bpf-linker")))
        .chain([tools.join("bpf-linker")])
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            "bpf-linker was not found. Install it:\n\
             - on Debian 12: apt-get install llvm-22-dev libpolly-22-dev libzstd-dev zlib1g-dev, then\n\
             \u{20} LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22\n\
             - elsewhere: cargo install bpf-linker --version 0.13.0"
                .into()
        })
}
