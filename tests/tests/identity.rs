//! Who may speak for a node: real agents and a real correlator over TLS, enrolment, renewal, authorities that are exchanged
//! under live streams, and those who speak for somebody else.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use prost::Message as _;
use seclog_journal::{Item, Reader};
use seclog_proto::v1::{Certificate, JournalEntry, journal_entry::Entry};
use seclog_tests::lab::{
    pki::{Identity, Pki},
    places,
    process::{PATIENCE, Process},
    site::{CLUSTER, Site, free_port, wait_until},
    skip,
    token::{ISSUER, TokenKey},
};

/// A site over TLS, with enrolment.
struct Office {
    site: Site,
    pki: Pki,
    tokens: TokenKey,
    enrolment: u16,
}

impl Office {
    /// `lifetime`: of certificates, seconds.
    fn new(lifetime: u64) -> Result<Self> {
        let mut site = Site::new()?;
        let directory = site.path("pki");
        fs::create_dir(&directory)?;
        let (pki, tokens, enrolment) = (Pki::create(&directory)?, TokenKey::new()?, free_port()?);
        fs::write(site.path("token-keys.pem"), tokens.public_pem())?;
        fs::write(site.path("denied"), "")?;
        fs::copy(&pki.ca, site.path("client-ca.pem"))?;
        fs::copy(&pki.ca, site.path("server-ca.pem"))?;
        let authority = pki.authority()?;
        let file = |name: &str| site.path(name).into_os_string();
        site.options = vec![
            "--tls-cert".into(),
            pki.server.certificate.clone().into(),
            "--tls-key".into(),
            pki.server.key.clone().into(),
            "--client-ca".into(),
            file("client-ca.pem"),
            "--denied".into(),
            file("denied"),
            "--enrol-listen".into(),
            format!("127.0.0.1:{enrolment}").into(),
            "--enrol-ca-cert".into(),
            authority.certificate.into(),
            "--enrol-ca-key".into(),
            authority.key.into(),
            "--enrol-ledger".into(),
            file("issued.jsonl"),
            "--enrol-lifetime".into(),
            lifetime.to_string().into(),
            "--token-keys".into(),
            file("token-keys.pem"),
            "--token-issuer".into(),
            ISSUER.into(),
        ];
        site.reached_at = Some(format!("https://localhost:{}", site.port));
        Ok(Self { site, pki, tokens, enrolment })
    }

    /// Of node-1, which shows that certificate.
    fn with_a_live_stream() -> Result<(Self, Identity, Process, Process)> {
        let mut office = Self::new(3600)?;
        let identity = office.pki.agent(CLUSTER, "node-1")?;
        office.feed_as(&identity, "node-1");
        let (correlator, feeder) = (office.site.correlator()?, office.site.feeder(&["--batches", "50"])?);
        feeder.wait_for_log("streaming to the correlator")?;
        Ok((office, identity, correlator, feeder))
    }

    /// The feeder shows these.
    fn feed_as(&mut self, identity: &Identity, node: &str) {
        self.site.feeder_options = vec![
            "--tls-ca".into(),
            self.site.path("server-ca.pem").into(),
            "--tls-cert".into(),
            identity.certificate.clone().into(),
            "--tls-key".into(),
            identity.key.clone().into(),
            "--node".into(),
            node.into(),
        ];
    }

    fn directory(&self, agent: &str) -> PathBuf {
        self.site.path(&format!("identity-{agent}"))
    }

    /// The agent itself, which gets its certificate by a token of `token_of`.
    fn agent(&self, name: &str, cluster: &str, node: &str, token: &str) -> Result<Process> {
        let token_file = self.site.path(&format!("token-{name}"));
        fs::write(&token_file, token)?;
        let mut command = Command::new(places::program("seclog-agent")?);
        command.env("NO_COLOR", "1").args(["run", "--cluster", cluster, "--node", node]);
        command.args(["--correlator", &format!("https://localhost:{}", self.site.port)]);
        command.args(["--enrol", &format!("https://localhost:{}", self.enrolment)]);
        command.arg("--tls-ca").arg(self.site.path("server-ca.pem")).arg("--enrol-token").arg(token_file);
        command.arg("--identity-dir").arg(self.directory(name));
        command.arg("--spool-dir").arg(self.site.path(&format!("spool-{name}")));
        command.arg("--state-file").arg(self.site.path(&format!("state-{name}")));
        Process::start("seclog-agent", &mut command)
    }

    fn certificates(&self) -> Result<Vec<Certificate>> {
        let mut found = Vec::new();
        let mut reader = Reader::new(&self.site.journal, 1);
        while let Some(item) = reader.next(u64::MAX)? {
            let Item::Entry(entry) = item else { continue };
            if let Some(Entry::Certificate(certificate)) = JournalEntry::decode(entry.payload)?.entry {
                found.push(certificate);
            }
        }
        Ok(found)
    }
}

fn lines(process: &Process, text: &str) -> usize {
    process.stderr().all().iter().filter(|line| line.contains(text)).count()
}

fn wait_for_lines(process: &Process, text: &str, count: usize) -> Result<()> {
    let enough = |lines: &[String]| lines.iter().filter(|line| line.contains(text)).count() >= count;
    let found = process.stderr().wait_until(PATIENCE, enough);
    ensure!(found, "not {count} times {text:?}: {}", process.log());
    Ok(())
}

/// Old and new, or new alone, as an administrator puts them there: whole or not at all.
fn bundle(at: &Path, authorities: &[&Path]) -> Result<()> {
    let all: Vec<String> = authorities.iter().map(fs::read_to_string).collect::<Result<_, _>>()?;
    let beside = at.with_extension("new");
    fs::write(&beside, all.concat())?;
    fs::rename(beside, at)?;
    Ok(())
}

#[test]
fn an_agent_makes_its_key_is_certified_streams_and_renews_in_time() -> Result<()> {
    let office = Office::new(10)?;
    let correlator = office.site.correlator()?;
    let agent = office.agent("one", CLUSTER, "node-1", &office.tokens.token("node-1")?)?;
    // Two lives of a certificate.
    wait_for_lines(&agent, "this node's key is certified", 3)?;
    wait_for_lines(&agent, "streaming to the correlator", 3)?;
    let certificates = office.certificates()?;
    ensure!(certificates.len() >= 3 && certificates.iter().all(|certificate| certificate.node == "node-1"));
    ensure!(certificates.iter().all(|certificate| !certificate.second_key), "{certificates:?}");
    let keys: Vec<_> = certificates.iter().map(|certificate| &certificate.key_sha256).collect();
    ensure!(keys.windows(2).all(|pair| pair[0] == pair[1]), "one key: {keys:?}");
    // Before the first certificate there is none; afterwards streams end to renew, and for nothing else.
    let broken = agent.stderr().all().into_iter().filter(|line| line.contains("no stream to the correlator"));
    let broken: Vec<String> = broken.filter(|line| !line.contains("this node has no certificate yet")).collect();
    ensure!(broken.is_empty(), "{broken:?}");
    ensure!(lines(&correlator, "agent connected node=node-1") >= 3, "{}", correlator.log());
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(office.directory("one").join("node.key"))?);
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    ensure!(agent.terminate()?.success(), "{}", agent.log());
    ensure!(correlator.terminate()?.success());
    Ok(())
}

#[test]
fn both_authorities_are_exchanged_under_a_live_stream_without_gap_or_duplicate() -> Result<()> {
    let mut office = Office::new(3600)?;
    // Files of the feeder's that can be replaced.
    let identity = Identity { certificate: office.site.path("node.pem"), key: office.site.path("node-key.pem") };
    let show = |from: &Identity| -> Result<()> {
        fs::copy(&from.key, &identity.key)?;
        fs::copy(&from.certificate, &identity.certificate)?;
        Ok(())
    };
    show(&office.pki.agent(CLUSTER, "node-1")?)?;
    office.feed_as(&identity, "node-1");
    let correlator = office.site.correlator()?;
    let feeder = office.site.feeder(&["--batches", "50"])?;
    feeder.wait_for_log("streaming to the correlator")?;

    let directory = office.site.path("new-pki");
    fs::create_dir(&directory)?;
    let next = Pki::create(&directory)?;
    let (server_ca, client_ca) = (office.site.path("server-ca.pem"), office.site.path("client-ca.pem"));
    // The correlator's own: agents trust both, the certificate is replaced, agents trust the new one alone.
    bundle(&server_ca, &[&office.pki.ca, &next.ca])?;
    wait_for_lines(&feeder, "connecting anew with the changed credentials", 1)?;
    fs::copy(&next.server.key, &office.pki.server.key)?;
    fs::copy(&next.server.certificate, &office.pki.server.certificate)?;
    wait_for_lines(&correlator, "TLS files changed: new connections", 1)?;
    bundle(&server_ca, &[&next.ca])?;
    wait_for_lines(&feeder, "connecting anew with the changed credentials", 2)?;
    // The agents': the correlator lets in both, agents show the new, the correlator lets in the new alone.
    bundle(&client_ca, &[&office.pki.ca, &next.ca])?;
    wait_for_lines(&correlator, "TLS files changed: new connections", 2)?;
    show(&next.agent(CLUSTER, "node-1")?)?;
    wait_for_lines(&feeder, "connecting anew with the changed credentials", 3)?;
    wait_for_lines(&feeder, "streaming to the correlator", 4)?;
    bundle(&client_ca, &[&next.ca])?;
    wait_for_lines(&correlator, "TLS files changed: new connections", 3)?;
    let before = office.site.journaled()?.ids.len();
    wait_until(|| Ok(office.site.journaled()?.ids.len() > before + 100))?;
    ensure!(lines(&feeder, "no stream to the correlator") == 0, "{}", feeder.log());
    office.site.settle_without_loss(&feeder, &correlator)?;
    Ok(())
}

#[test]
fn an_authority_that_is_no_longer_let_in_ends_streams_and_what_waits_comes_with_another_certificate() -> Result<()> {
    let (mut office, identity, correlator, feeder) = Office::with_a_live_stream()?;
    let directory = office.site.path("new-pki");
    fs::create_dir(&directory)?;
    let next = Pki::create(&directory)?;
    bundle(&office.site.path("client-ca.pem"), &[&next.ca])?;
    correlator.wait_for_log("the client certificate is not accepted any more")?;
    let replaced = next.agent(CLUSTER, "node-1")?;
    fs::copy(&replaced.key, &identity.key)?;
    fs::copy(&replaced.certificate, &identity.certificate)?;
    wait_for_lines(&feeder, "streaming to the correlator", 2)?;
    office.site.settle_without_loss(&feeder, &correlator)?;
    Ok(())
}

#[test]
fn a_certificate_speaks_for_its_own_node_and_cluster_and_no_other() -> Result<()> {
    let mut office = Office::new(3600)?;
    let correlator = office.site.correlator()?;
    let stranger = office.site.path("stranger");
    fs::create_dir(&stranger)?;
    let stranger = Pki::create(&stranger)?.agent(CLUSTER, "node-2")?;
    let cases = [
        (office.pki.agent(CLUSTER, "node-1")?, "hello says \\\"guest\\\"/\\\"node-2\\\", the certificate guest/node-1"),
        (
            office.pki.agent("other", "node-2")?,
            "the certificate is of cluster \\\"other\\\"; this correlator serves \\\"guest\\\"",
        ),
        (office.pki.webhook_client.clone(), "names no node"),
        (stranger, "no stream to the correlator"),
    ];
    for (number, (identity, refusal)) in cases.iter().enumerate() {
        office.feed_as(identity, "node-2");
        office.site.spool = office.site.path(&format!("spool-{number}"));
        let feeder = office.site.feeder(&["--batches", "5"])?;
        let unescaped = refusal.replace('\\', "");
        let refused = |lines: &[String]| lines.iter().any(|line| line.contains(refusal) || line.contains(&unescaped));
        ensure!(feeder.stderr().wait_until(PATIENCE, refused), "{refusal}: {}", feeder.log());
        ensure!(lines(&feeder, "streaming to the correlator") == 0, "{}", feeder.log());
        feeder.signal(Signal::SIGKILL);
    }
    ensure!(office.site.journaled()?.ids.is_empty());
    ensure!(correlator.terminate()?.success());
    Ok(())
}

#[test]
fn a_token_of_another_node_cluster_or_api_server_gives_no_certificate() -> Result<()> {
    let office = Office::new(3600)?;
    let correlator = office.site.correlator()?;
    let another = TokenKey::new()?.token("node-1")?;
    let own = office.tokens.token("node-1")?;
    for (name, cluster, token, refusal) in [
        (
            "node",
            CLUSTER,
            office.tokens.token("node-2")?,
            "it is for guest/node-2, and this agent is configured as guest/node-1",
        ),
        ("key", CLUSTER, another, "the token is not accepted"),
        ("cluster", "other", own, "this correlator serves cluster"),
    ] {
        let agent = office.agent(name, cluster, "node-1", &token)?;
        agent.wait_for_log(refusal)?;
        ensure!(lines(&agent, "streaming to the correlator") == 0, "{}", agent.log());
        ensure!(!office.directory(name).join("node.crt").exists());
        agent.signal(Signal::SIGKILL);
    }
    ensure!(correlator.terminate()?.success());
    // The certificate that the first one could not use is told all the same.
    ensure!(office.certificates()?.iter().all(|certificate| certificate.node == "node-2"));
    Ok(())
}

#[test]
fn a_copied_key_that_streams_twice_is_a_finding_and_the_records_of_both_are_kept() -> Result<()> {
    let mut office = Office::new(3600)?;
    let identity = office.pki.agent(CLUSTER, "node-1")?;
    office.feed_as(&identity, "node-1");
    let correlator = office.site.correlator()?;
    let original = office.site.feeder(&["--batches", "20"])?;
    let spool = office.site.spool.clone();
    office.site.spool = office.site.path("copy");
    let copy = office.site.feeder(&["--batches", "20"])?;
    office.site.wait_for_output("node-identity-shared")?;
    ensure!(original.terminate()?.success() && copy.terminate()?.success());
    office.site.drain()?;
    office.site.spool = spool;
    office.site.drain()?;
    ensure!(correlator.terminate()?.success());
    ensure!(office.site.expect_all()?.lost == 0);
    Ok(())
}

#[test]
fn a_second_key_of_a_node_is_certified_and_told() -> Result<()> {
    let office = Office::new(3600)?;
    let correlator = office.site.correlator()?;
    let token = office.tokens.token("node-1")?;
    let first = office.agent("first", CLUSTER, "node-1", &token)?;
    first.wait_for_log("this node's key is certified")?;
    ensure!(first.terminate()?.success());
    let second = office.agent("second", CLUSTER, "node-1", &token)?;
    second.wait_for_log("this node's key is certified")?;
    correlator.wait_for_log("another key was certified for a node")?;
    office.site.wait_for_output("node-key-second")?;
    ensure!(second.terminate()?.success());
    ensure!(correlator.terminate()?.success());
    Ok(())
}

#[test]
fn who_is_denied_is_let_out_and_not_in_again_until_the_list_says_so() -> Result<()> {
    let (mut office, identity, correlator, feeder) = Office::with_a_live_stream()?;
    let denied = office.site.path("denied");
    fs::write(&denied, "node node-1 # its disk was stolen\n")?;
    feeder.wait_for_log("an administrator denied node node-1")?;
    let agent = office.agent("denied", CLUSTER, "node-1", &office.tokens.token("node-1")?)?;
    agent.wait_for_log("an administrator denied node node-1")?;
    agent.signal(Signal::SIGKILL);
    ensure!(office.certificates()?.is_empty(), "none is issued");
    let before = office.site.journaled()?.ids.len();
    sleep(Duration::from_secs(1));
    ensure!(office.site.journaled()?.ids.len() == before);
    let key = seclog_identity::Facts::of_pem(&fs::read(&identity.certificate)?)?.key_sha256;
    fs::write(&denied, format!("key {key}\n"))?;
    feeder.wait_for_log(&format!("an administrator denied key {key}"))?;
    fs::write(&denied, "")?;
    wait_for_lines(&feeder, "streaming to the correlator", 2)?;
    office.site.settle_without_loss(&feeder, &correlator).context("what waited came")?;
    Ok(())
}

/// The commands of a page that begin with one of these words.
fn commands(page: &str, programs: &[&str]) -> Result<Vec<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = fs::read_to_string(page)?.replace("\\\n", " ");
    let is_one = |line: &&str| programs.iter().any(|program| line.starts_with(&format!("{program} ")));
    Ok(text.lines().map(str::trim).filter(is_one).map(str::to_owned).collect())
}

#[test]
fn the_keys_and_authorities_that_the_documentation_makes_are_taken() -> Result<()> {
    if places::tool("openssl").is_none() {
        skip("the_keys_and_authorities_that_the_documentation_makes_are_taken", "openssl is not installed");
        return Ok(());
    }
    let mut office = Office::new(3600)?;
    let directory = office.site.path("documented");
    fs::create_dir(&directory)?;
    // The authority of the API servers' webhook certificates.
    fs::copy(&office.pki.ca, directory.join("ca.crt"))?;
    let all = [commands("identity.md", &["openssl", "cat"])?, commands("delivery.md", &["openssl"])?].concat();
    ensure!(all.len() == 4, "{all:#?}");
    for command in all {
        let output = Command::new("sh").current_dir(&directory).args(["-ec", &command]).output()?;
        ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for (option, file) in
        [("--client-ca", "client-ca.crt"), ("--enrol-ca-cert", "enrol-ca.crt"), ("--enrol-ca-key", "enrol-ca.key")]
    {
        let at = office.site.options.iter().position(|known| known == option).context("no such option")?;
        office.site.options[at + 1] = directory.join(file).into();
    }
    fs::copy(directory.join("checkpoint-key.pem"), office.site.path("key.pem"))?;
    fs::copy(directory.join("checkpoint.pem"), office.site.path("public.pem"))?;
    let correlator = office.site.correlator()?;
    let agent = office.agent("one", CLUSTER, "node-1", &office.tokens.token("node-1")?)?;
    agent.wait_for_log("streaming to the correlator")?;
    ensure!(agent.terminate()?.success() && correlator.terminate()?.success());
    let (code, text) = office.site.verify()?;
    ensure!(code == 0 && text.contains("is as it was when they were signed"), "{code}: {text}");
    Ok(())
}
