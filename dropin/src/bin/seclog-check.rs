//! Drives the check until the agent has its subcommand.
use clap::Parser;
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: seclog_dropin::check::CheckArgs,
}
fn main() -> std::process::ExitCode {
    seclog_dropin::check::check(&Cli::parse().args)
}
