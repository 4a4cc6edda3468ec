//! Delivery through faults: the agent's own spool and stream, the correlator itself, real kills, cut networks, full and
//! damaged disks.
//!
//! `make soak` runs the long form (SECLOG_SOAK=1).

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use seclog_tests::lab::{
    faults::{Dice, LoopDisk, Namespace, SmallDisk, as_root, last_segment, resident_kib},
    places,
    process::{PATIENCE, Process},
    relay::Relay,
    site::{Site, wait_until},
    skip,
};

fn is_soak() -> bool {
    std::env::var_os("SECLOG_SOAK").is_some()
}

#[test]
fn what_was_taken_in_survives_kills_of_both_sides_under_load() -> Result<()> {
    let mut site = Site::new()?;
    let mut dice = Dice(7);
    let mut correlator = site.correlator()?;
    let mut feeder = site.feeder(&[])?;
    for _ in 0..if is_soak() { 100 } else { 10 } {
        sleep(Duration::from_millis(100 + dice.roll(600)));
        let who = dice.roll(3);
        if who != 0 {
            correlator.signal(Signal::SIGKILL);
            correlator.wait(PATIENCE).context("killed")?;
        }
        if who != 1 {
            feeder.signal(Signal::SIGKILL);
            feeder.wait(PATIENCE).context("killed")?;
        }
        if who != 0 {
            correlator = site.correlator()?;
        }
        if who != 1 {
            feeder = site.feeder(&[])?;
        }
    }
    site.settle_without_loss(&feeder, &correlator)?;
    Ok(())
}

#[test]
fn a_network_that_is_cut_and_slowed_loses_nothing() -> Result<()> {
    let name = "a_network_that_is_cut_and_slowed_loses_nothing";
    let Some(()) = as_root(name) else { return Ok(()) };
    if places::tool("ip").is_none() {
        skip(name, "iproute2 is not installed");
        return Ok(());
    }
    let mut site = Site::new()?;
    site.namespace = Some(Namespace::new("cut")?);
    let correlator = site.correlator()?;
    let feeder = site.feeder(&[])?;
    for _ in 0..if is_soak() { 20 } else { 2 } {
        sleep(Duration::from_millis(700));
        let network = site.namespace.as_ref().context("namespace")?;
        network.cut()?;
        sleep(Duration::from_millis(1500));
        network.connect()?;
    }
    let network = site.namespace.as_ref().context("namespace")?;
    if network.slow() {
        sleep(Duration::from_secs(if is_soak() { 60 } else { 3 }));
        network.fast()?;
    }
    site.settle_without_loss(&feeder, &correlator)?;
    Ok(())
}

#[test]
fn a_slow_network_loses_nothing_and_grows_no_memory() -> Result<()> {
    let mut site = Site::new()?;
    let correlator = site.correlator()?;
    // Far less than comes in gets through.
    let relay = Relay::start(site.port, 20 << 10)?;
    site.reached_at = Some(format!("http://127.0.0.1:{}", relay.port));
    let feeder = site.feeder(&[])?;
    feeder.wait_for_log("streaming to the correlator")?;
    sleep(Duration::from_secs(1));
    let before = resident_kib(&feeder)?;
    sleep(Duration::from_secs(if is_soak() { 60 } else { 4 }));
    let after = resident_kib(&feeder)?;
    ensure!(after < before + (16 << 10), "from {before} to {after} KiB over the slow network");
    let (truth, there) = (site.truth()?.len(), site.journaled()?.ids.len());
    ensure!(there < truth / 2, "{there} of {truth} came through: the network was not slow");
    relay.set_speed(u64::MAX);
    site.settle_without_loss(&feeder, &correlator)?;
    Ok(())
}

#[test]
fn a_correlator_that_does_not_read_grows_no_memory_of_the_agent() -> Result<()> {
    let mut site = Site::new()?;
    let correlator = site.correlator()?;
    let feeder = site.feeder(&[])?;
    feeder.wait_for_log("streaming to the correlator")?;
    correlator.signal(Signal::SIGSTOP);
    sleep(Duration::from_secs(1));
    let before = resident_kib(&feeder)?;
    sleep(Duration::from_secs(if is_soak() { 60 } else { 4 }));
    let after = resident_kib(&feeder)?;
    correlator.signal(Signal::SIGCONT);
    ensure!(after < before + (16 << 10), "from {before} to {after} KiB while the correlator stood still");
    site.settle_without_loss(&feeder, &correlator)?;
    Ok(())
}

#[test]
fn a_full_disk_of_the_correlator_stops_acknowledgements_until_there_is_room() -> Result<()> {
    let Some(()) = as_root("a_full_disk_of_the_correlator_stops_acknowledgements_until_there_is_room") else {
        return Ok(());
    };
    let mut site = Site::new()?;
    let disk = SmallDisk::mount(&site.journal, "2m")?;
    let correlator = site.correlator()?;
    let feeder = site.feeder(&[])?;
    correlator.wait_for_log("the journal has no room")?;
    sleep(Duration::from_secs(1));
    disk.remount("size=512m")?;
    sleep(Duration::from_secs(1));
    site.settle_without_loss(&feeder, &correlator)?;
    Ok(())
}

#[test]
fn a_full_disk_of_the_agent_is_a_counted_loss() -> Result<()> {
    let Some(()) = as_root("a_full_disk_of_the_agent_is_a_counted_loss") else { return Ok(()) };
    let mut site = Site::new()?;
    let _disk = SmallDisk::mount(&site.spool, "2m")?;
    // The correlator is away meanwhile.
    let feeder = site.feeder(&[])?;
    feeder.wait_for_log("records are refused")?;
    sleep(Duration::from_secs(1));
    let correlator = site.correlator()?;
    sleep(Duration::from_secs(3));
    let journaled = site.settle(&feeder, &correlator)?;
    let (truth, there) = (site.truth()?.len() as u64, journaled.ids.len() as u64);
    ensure!(journaled.lost > 0 && there + journaled.lost == truth, "{there} and {} lost of {truth}", journaled.lost);
    Ok(())
}

#[test]
fn a_read_only_disk_is_refused_in_words_and_nothing_is_lost() -> Result<()> {
    let Some(()) = as_root("a_read_only_disk_is_refused_in_words_and_nothing_is_lost") else { return Ok(()) };
    let mut site = Site::new()?;
    let disk = SmallDisk::mount(&site.journal, "512m")?;
    let first = site.correlator()?;
    let feeder = site.feeder(&[])?;
    sleep(Duration::from_secs(1));
    ensure!(first.terminate()?.success());
    disk.remount("ro")?;
    let refused = site.correlator_command()?.output()?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(2) && text.contains("cannot open the journal"), "{text}");
    disk.remount("rw")?;
    let correlator = site.correlator()?;
    site.settle(&feeder, &correlator)?;
    Ok(())
}

#[test]
fn flipped_and_torn_bytes_cost_what_they_hit_and_verify_names_it() -> Result<()> {
    let mut site = Site::new()?;
    let correlator = site.correlator()?;
    let feeder = site.feeder(&[])?;
    sleep(Duration::from_secs(2));
    correlator.signal(Signal::SIGKILL);
    correlator.wait(PATIENCE).context("killed")?;
    let before = site.journaled()?;
    let segment = last_segment(&site.journal)?;
    let mut bytes = fs::read(&segment)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    // What a crash within an append leaves.
    let torn = bytes[72..130].to_vec();
    bytes.extend_from_slice(&torn);
    fs::write(&segment, bytes)?;
    let correlator = site.correlator()?;
    correlator.wait_for_log("did not end as it was left")?;
    ensure!(feeder.terminate()?.success());
    site.drain()?;
    ensure!(correlator.terminate()?.success());
    let journaled = site.journaled()?;
    ensure!(journaled.missing_entries == 1 && journaled.ids.values().all(|count| *count == 1));
    let gone = before.ids.keys().filter(|id| !journaled.ids.contains_key(*id)).count();
    ensure!(gone <= 1000, "{gone} records of one entry");
    let (code, text) = site.verify()?;
    ensure!(code == 1 && text.contains("is damaged"), "{code}: {text}");
    Ok(())
}

#[test]
fn a_shortened_journal_is_noticed_by_its_checkpoints() -> Result<()> {
    let mut site = Site::new()?;
    let correlator = site.correlator()?;
    let feeder = site.feeder(&[])?;
    sleep(Duration::from_secs(2));
    ensure!(feeder.terminate()?.success());
    ensure!(correlator.terminate()?.success());
    ensure!(site.verify()?.0 == 0, "{}", site.verify()?.1);
    let segment = last_segment(&site.journal)?;
    let length = fs::metadata(&segment)?.len();
    fs::OpenOptions::new().write(true).open(&segment)?.set_len(length / 2)?;
    let (code, text) = site.verify()?;
    ensure!(code == 1 && text.contains("the end of the journal is missing"), "{code}: {text}");
    ensure!(
        Command::new(places::program("seclog-correlator")?).args(["verify", "/nowhere"]).output()?.status.code()
            == Some(2)
    );
    Ok(())
}

#[test]
fn damage_of_the_spool_is_a_counted_loss() -> Result<()> {
    let mut site = Site::new()?;
    let feeder = site.feeder(&[])?;
    sleep(Duration::from_secs(1));
    feeder.signal(Signal::SIGKILL);
    feeder.wait(PATIENCE).context("killed")?;
    let epoch = fs::read_dir(&site.spool)?.map(|entry| entry.map(|entry| entry.path()));
    let epoch = epoch.filter_map(Result::ok).find(|path| path.is_dir()).context("no epoch")?;
    let segment = last_segment(&epoch)?;
    let mut bytes = fs::read(&segment)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes)?;
    let correlator = site.correlator()?;
    site.drain()?;
    ensure!(correlator.terminate()?.success());
    let journaled = site.expect_all()?;
    let missing = site.truth()?.iter().filter(|id| !journaled.ids.contains_key(*id)).count() as u64;
    ensure!(journaled.lost == missing && missing > 0, "{missing} missing, {} declared", journaled.lost);
    Ok(())
}

#[test]
fn clock_steps_lose_nothing() -> Result<()> {
    let library = Path::new("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1");
    if !library.exists() {
        skip("clock_steps_lose_nothing", "libfaketime is not installed");
        return Ok(());
    }
    let mut site = Site::new()?;
    let clock = site.path("clock");
    fs::write(&clock, "+0")?;
    site.environment = vec![
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
    ];
    let mut correlator = site.correlator()?;
    let feeder = site.feeder(&[])?;
    for step in ["+3600", "-3600", "+0", "-86400"] {
        sleep(Duration::from_millis(700));
        fs::write(&clock, step)?;
    }
    correlator.signal(Signal::SIGKILL);
    correlator.wait(PATIENCE).context("killed")?;
    correlator = site.correlator()?;
    sleep(Duration::from_millis(700));
    site.settle_without_loss(&feeder, &correlator)?;
    Ok(())
}

#[test]
fn two_agents_with_one_nodes_key_are_a_finding_and_both_are_kept() -> Result<()> {
    let mut site = Site::new()?;
    let correlator = site.correlator()?;
    let original = site.feeder(&["--batches", "20"])?;
    site.spool = site.path("copy");
    let copy = site.feeder(&["--batches", "20"])?;
    site.wait_for_output("node-identity-shared")?;
    ensure!(original.terminate()?.success() && copy.terminate()?.success());
    site.drain()?;
    site.spool = site.path("spool");
    site.drain()?;
    ensure!(correlator.terminate()?.success());
    let journaled = site.expect_all()?;
    ensure!(journaled.lost == 0);
    Ok(())
}

#[test]
fn a_stop_hands_over_everything_within_its_deadline() -> Result<()> {
    let mut site = Site::new()?;
    let correlator = site.correlator()?;
    let feeder = site.feeder(&[])?;
    sleep(Duration::from_secs(1));
    ensure!(feeder.terminate()?.success());
    ensure!(correlator.terminate()?.success());
    // Nothing is sent afterwards.
    let journaled = site.expect_all()?;
    ensure!(journaled.lost == 0);
    Ok(())
}

/// A sample of a program's own metrics.
fn metric(process: &Process, name: &str) -> Result<u64> {
    let line = process.wait_for_log("listening for metrics")?;
    let address = line.rsplit_once("addr=").context("addr=")?.1.trim();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {name} in {text}"))?.trim().parse()?)
}

#[test]
fn the_counters_of_agent_and_correlator_close_after_kills() -> Result<()> {
    let most = if is_soak() { 400_000 } else { 20_000 };
    let mut site = Site::new()?;
    site.options = vec!["--metrics-listen".into(), "127.0.0.1:0".into()];
    let mut dice = Dice(23);
    let mut correlator = site.correlator()?;
    let feeder = site.feeder(&["--batches", "100", "--most", &most.to_string()])?;
    for _ in 0..if is_soak() { 40 } else { 4 } {
        sleep(Duration::from_millis(200 + dice.roll(500)));
        correlator.signal(Signal::SIGKILL);
        correlator.wait(PATIENCE).context("killed")?;
        let there = site.journaled()?;
        there.expect_none_twice()?;
        let acknowledged = metric(&feeder, "seclog_agent_uplink_acknowledged_total")?;
        ensure!(
            there.ids.len() as u64 >= acknowledged,
            "{acknowledged} were acknowledged, the journal has {} after the kill",
            there.ids.len()
        );
        correlator = site.correlator()?;
    }
    wait_until(|| Ok(metric(&feeder, "seclog_agent_uplink_acknowledged_total")? >= most))?;
    let of_feeder = |name: &str| metric(&feeder, &format!("seclog_agent_{name}_total"));
    let taken_in = of_feeder("records")?;
    let [acknowledged, refused, lost] =
        [of_feeder("uplink_acknowledged")?, of_feeder("uplink_refused")?, of_feeder("uplink_lost")?];
    ensure!(
        (taken_in, acknowledged, refused, lost) == (most, most, 0, 0),
        "{taken_in} taken in, {acknowledged} acknowledged, {refused} refused, {lost} lost"
    );
    let written = metric(&correlator, "seclog_correlator_journal_entries_total")?;
    ensure!(written > 0 && metric(&correlator, "seclog_correlator_journal_refused_total")? == 0);
    let journaled = site.settle_without_loss(&feeder, &correlator)?;
    ensure!(journaled.ids.len() as u64 == most, "{} of {most}", journaled.ids.len());
    Ok(())
}

#[test]
fn an_agent_goes_to_another_endpoint_and_back() -> Result<()> {
    let mut site = Site::new()?;
    // Two ways to one correlator: two addresses of a load balancer.
    let (one, other) = (Relay::start(site.port, u64::MAX)?, Relay::start(site.port, u64::MAX)?);
    site.reached_at = Some(format!("http://127.0.0.1:{},http://127.0.0.1:{}", one.port, other.port));
    let correlator = site.correlator()?;
    let feeder = site.feeder(&[])?;
    let streams = |count: usize| {
        let begun = |lines: &[String]| lines.iter().filter(|line| line.contains("streaming to the correlator")).count();
        feeder.stderr().wait_until(PATIENCE, |lines| begun(lines) >= count)
    };
    ensure!(streams(1) && one.connections() == 1 && other.connections() == 0, "{}", feeder.log());
    one.cut(true);
    ensure!(streams(2) && other.connections() == 1, "{}", feeder.log());
    one.cut(false);
    other.cut(true);
    ensure!(streams(3) && one.connections() == 1, "{}", feeder.log());
    site.settle_without_loss(&feeder, &correlator)?;
    Ok(())
}

#[test]
fn a_disk_that_fails_under_a_correlator_stops_acknowledgements_and_loses_nothing_acknowledged() -> Result<()> {
    let name = "a_disk_that_fails_under_a_correlator_stops_acknowledgements_and_loses_nothing_acknowledged";
    let Some(()) = as_root(name) else { return Ok(()) };
    let mut site = Site::new()?;
    let disk = match LoopDisk::mount(&site.path("disk"), 256 << 20) {
        Ok(disk) => disk,
        Err(error) => {
            skip(name, format!("no disk can be made of a file here: {error:#}"));
            return Ok(());
        }
    };
    site.journal = site.path("disk").join("journal");
    let mut correlator = site.correlator()?;
    let feeder = site.feeder(&["--batches", "50"])?;
    wait_until(|| Ok(!site.journaled()?.ids.is_empty()))?;
    disk.fail()?;
    correlator.wait_for_log("the journal cannot be written")?;
    feeder.wait_for_log("the journal cannot be written")?;
    let before = site.journaled()?.ids.len();
    sleep(Duration::from_secs(1));
    ensure!(correlator.is_running() && site.journaled()?.ids.len() == before, "{}", correlator.log());
    correlator.signal(Signal::SIGKILL);
    correlator.wait(PATIENCE).context("killed")?;
    disk.repair()?;
    correlator = site.correlator()?;
    site.settle_without_loss(&feeder, &correlator)?;
    Ok(())
}

#[test]
fn what_retention_deletes_and_what_is_read_out_are_entries_and_verify_tells_them() -> Result<()> {
    let mut site = Site::new()?;
    site.options = vec!["--journal-bytes".into(), (16 << 20).to_string().into()];
    let correlator = site.correlator()?;
    let feeder = site.feeder(&["--batches", "100", "--records", "1000"])?;
    wait_until(|| Ok(site.journaled()?.deleted_until > 0))?;
    ensure!(feeder.terminate()?.success());
    site.drain()?;
    // Read out while the correlator runs, and when none does.
    let export = |to: &str| -> Result<String> {
        let mut command = Command::new(places::program("seclog-correlator")?);
        command.arg("export").arg(&site.journal).arg("--to").arg(site.path(to));
        let output = command.args(["--by", "alice", "--reason", "INC-7"]).output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && text.contains("export is done"), "{:?}: {text}", output.status);
        Ok(fs::read_to_string(site.path(to).join("node-node-1.jsonl"))?)
    };
    let read_out = export("live")?;
    ensure!(correlator.terminate()?.success());
    ensure!(export("at-rest")? == read_out);
    let journaled = site.journaled()?;
    ensure!(read_out.lines().count() == journaled.ids.len(), "{} lines", read_out.lines().count());
    ensure!(journaled.exports == 2);
    journaled.expect_none_twice()?;
    // What is missing is what was deleted, and the checkpoints hold behind it.
    let (code, text) = site.verify()?;
    ensure!(code == 0, "{text}");
    ensure!(text.contains("deleted by retention: entries 1 to "), "{text}");
    ensure!(text.matches("read out at").count() == 2 && text.contains("\"alice\"") && text.contains("INC-7"), "{text}");
    ensure!(text.contains("is as it was when they were signed"), "{text}");
    // Somebody else who deletes is told from that.
    let mut segments: Vec<_> = fs::read_dir(&site.journal)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    segments.retain(|path| path.extension().is_some_and(|end| end == "log"));
    segments.sort();
    fs::remove_file(&segments[0])?;
    let (code, text) = site.verify()?;
    ensure!(code == 1 && text.contains("no entry says who deleted them"), "{code}: {text}");
    Ok(())
}

#[test]
fn an_outlet_that_takes_nothing_stops_agents_and_grows_no_memory() -> Result<()> {
    const MEMORY: u64 = 32 << 20;
    let mut site = Site::new()?;
    let pipe = site.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(&pipe);
    let mut full = open(nix::libc::O_NONBLOCK)?;
    while full.write(&[b'\n'; 4096]).is_ok() {}
    site.output = Some(pipe.clone());
    for (option, value) in [
        ("--journal-bytes", (16 << 20).to_string()),
        ("--intake-memory", MEMORY.to_string()),
        ("--metrics-listen", "127.0.0.1:0".into()),
    ] {
        site.options.extend([option.into(), value.into()]);
    }
    let correlator = site.correlator()?;
    let feeder = site.feeder(&["--batches", "100", "--records", "500"])?;
    correlator.wait_for_log("full of what the join has not read yet")?;
    feeder.wait_for_log("ResourceExhausted")?;
    let before = resident_kib(&correlator)?;
    sleep(Duration::from_secs(if is_soak() { 60 } else { 2 }));
    let after = resident_kib(&correlator)?;
    ensure!(after < before + (32 << 10), "from {before} to {after} KiB while nothing could be written");
    let most = metric(&correlator, "seclog_correlator_intake_memory_most_bytes")?;
    ensure!(0 < most && most <= MEMORY, "{most} bytes held of {MEMORY}");
    // Somebody reads: everything goes on.
    let output = site.path("out.jsonl");
    let mut reader = open(0)?;
    drop(full);
    std::thread::spawn(move || io::copy(&mut reader, &mut fs::File::create(output)?));
    ensure!(feeder.terminate()?.success());
    site.drain()?;
    ensure!(correlator.terminate()?.success());
    site.journaled()?.expect_none_twice()?;
    Ok(())
}
