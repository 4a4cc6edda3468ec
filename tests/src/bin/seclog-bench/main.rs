//! `make bench`: what is measured of the agent, as one table. Says what could not be measured, and exits with 0 whenever it
//! could measure anything: a missed target is marked in the table.

use anyhow::Result;
use clap::{Parser, ValueEnum};
use seclog_tests::{
    bench::{audit_state, figure::Figure, figure::Report, fusing, instructions, peer, programs, ring, storm, workload},
    lab::exclusive,
};

/// The agent's own, since its rooms are measured in this program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Synthetic records in memory: no privileges needed.
    Synthetic,
    Idle,
    Workload,
    /// What a logged call costs where the hook attaches, in QEMU
    Instructions,
    Storm,
    Peer,
}

#[derive(Debug, Parser)]
#[command(about = "Measures the agent")]
struct Options {
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Verdicts in a storm
    #[arg(long, default_value_t = 200_000)]
    verdicts: u64,
    /// Synthetic processes, eight ring records each
    #[arg(long, default_value_t = 125_000)]
    processes: u32,
    /// Synthetic verdicts of two sources
    #[arg(long, default_value_t = 1_000_000)]
    pairs: u64,
}

fn main() -> Result<()> {
    let Options { only, verdicts, processes, pairs } = Options::parse();
    let wanted = |part: Part| only.is_empty() || only.contains(&part);
    let mut report = Report::default();
    if wanted(Part::Synthetic) {
        eprintln!("synthetic records");
        add(&mut report, "ring record", ring::figures(processes));
        add(&mut report, "fuse", fusing::figures(pairs));
    }
    if wanted(Part::Instructions) {
        eprintln!("a logged call in QEMU");
        add(&mut report, "a logged call, quiet mode with the hook", instructions::figures());
    }
    // The host's audit stream and its settings: one at a time.
    let _turn = exclusive::turn("containers")?;
    let usable = audit_state::usable();
    if wanted(Part::Idle) || wanted(Part::Workload) {
        eprintln!("an idle agent, and its kernel programs");
        match storm::idle() {
            Ok((figures, of_programs)) => {
                report.extend(figures);
                report.extend(programs::figures(&of_programs));
            }
            Err(error) => report.add(Figure::not_measured("idle", "", format!("{error:#}"))),
        }
    }
    let audit = [
        (Part::Workload, "a logged call"),
        (Part::Storm, "memory in the storm, none lost"),
        (Part::Peer, "agent CPU per event"),
    ];
    for (part, name) in audit.into_iter().filter(|(part, _)| wanted(*part)) {
        if let Err(error) = &usable {
            report.add(Figure::not_measured(name, "", format!("{error:#}")));
            continue;
        }
        eprintln!("{name}");
        let figures = match part {
            Part::Storm => storm::figures(verdicts),
            Part::Peer => peer::figures(verdicts),
            _ => workload::figures(),
        };
        add(&mut report, name, figures);
    }
    println!("\n{report}");
    Ok(())
}

fn add(report: &mut Report, name: &str, figures: Result<Vec<Figure>>) {
    match figures {
        Ok(figures) => report.extend(figures),
        Err(error) => report.add(Figure::not_measured(name, "", format!("{error:#}"))),
    }
}
