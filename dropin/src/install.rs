use crate::check::CheckArgs;
use clap::Args;
use std::process::ExitCode;
#[derive(Debug, Clone, Args)]
pub struct InstallArgs {
    #[arg(long)]
    pub install: bool,
}
pub(crate) fn command(_: &CheckArgs) -> ExitCode {
    ExitCode::from(2)
}
