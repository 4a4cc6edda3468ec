//! Drives check and render until agent and correlator have their subcommands.
use clap::Parser;
#[derive(Parser)]
enum Cli {
    Check(seclog_dropin::check::CheckArgs),
    Render(Box<seclog_dropin::render::RenderArgs>),
}
fn main() -> std::process::ExitCode {
    match Cli::parse() {
        Cli::Check(args) => seclog_dropin::check::check(&args),
        Cli::Render(args) => seclog_dropin::render::render(&args),
    }
}
