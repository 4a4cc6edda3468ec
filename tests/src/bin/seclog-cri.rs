//! Asks a container runtime by its socket to execute something, as crictl does: one request, and what came of it.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use seclog_tests::lab::cri::Cri;

#[derive(Debug, Parser)]
#[command(about = "Executes in a container by the Container Runtime Interface")]
struct Args {
    socket: PathBuf,
    /// crictl's way is `exec`, and with `--sync` the other
    way: Way,
    container: String,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Way {
    Exec,
    ExecSync,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Args { socket, way, container, command } = Args::parse();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut cri = Cri::connect(&socket, &std::env::temp_dir()).await?;
    let output = match way {
        Way::Exec => cri.exec(&container, &command).await?,
        Way::ExecSync => cri.exec_sync(&container, &command).await?,
    };
    print!("{}", output.stdout);
    eprint!("{}", output.stderr);
    ensure!(output.exit_code == 0, "it ended with {}", output.exit_code);
    Ok(())
}
