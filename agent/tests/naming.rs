//! Names of containers: from the runtime's state on disk, from CRI, late ones as amendments, and of containers that hardly
//! live.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says no more by handling them")]

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use seclog_agent::{
    clock::Offset,
    container::{Cgroup, CriClient, Lookup, Naming, State, container_of_path, made, start_naming},
    drive::Captured,
    record::{Detail, Id, Origins, Place, Record},
    uplink::Batch,
};
use seclog_proto::{
    cri::{
        self,
        runtime_service_server::{RuntimeService, RuntimeServiceServer},
    },
    v1::{Amendment, NodeRecord, node_record::Detail as NodeDetail},
};
use tokio::{net::UnixListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

fn origins() -> Origins {
    Origins { boot_id: "boot".into(), epoch: 1 }
}

fn id(number: u64) -> String {
    format!("{number:064x}")
}

fn cgroup_path(id: &str) -> String {
    format!("/kubepods/besteffort/podu/crio-{id}")
}

/// Something that ended in a container.
fn record(number: u64, container: &str) -> Record {
    let path = cgroup_path(container);
    let container = container_of_path(&path).map(Arc::from);
    let cgroup = Arc::new(Cgroup { container, pod_uid: "u".into(), path: path.into() });
    let place = Place { cgroup_id: number, cgroup, container: None, mount_namespace: 1, pid_namespace: 1 };
    let record = Record::new(Id::Own('t', number), Offset::from_pair(1, 1), number, Detail::Exit(0));
    Record { place: Some(place), ..record }
}

fn captured(records: Vec<Record>) -> Captured {
    Captured { origins: origins(), records, watermark_unix_ns: 7, counters: None }
}

fn specification(directory: &Path, id: &str, pod: &str) {
    let below = directory.join(id).join("userdata");
    fs::create_dir_all(&below).unwrap();
    let spec = serde_json::json!({
        "annotations": {
            "io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": "u-1",
            "io.kubernetes.container.name": "app", "io.kubernetes.cri-o.ImageName": "localhost/bb:latest",
        },
        "process": { "env": ["A=1"] },
        "linux": {},
    });
    // As a runtime does it: whole or not at all.
    let beside = below.join("new");
    fs::write(&beside, spec.to_string()).unwrap();
    fs::rename(beside, below.join("config.json")).unwrap();
}

fn state(directory: &Path) -> (Vec<State>, PathBuf) {
    let directory = directory.join("overlay-containers");
    fs::create_dir_all(&directory).unwrap();
    (State::find(std::slice::from_ref(&directory)), directory)
}

fn names(record: &NodeRecord) -> (&str, &str) {
    record.container.as_ref().map(|c| (c.pod_name.as_str(), c.names.as_str())).unwrap_or_default()
}

fn amendments(batch: &Batch) -> impl Iterator<Item = (&NodeRecord, &Amendment)> {
    batch.records.iter().filter_map(|record| match &record.detail {
        Some(NodeDetail::Amendment(amendment)) => Some((record, amendment)),
        _ => None,
    })
}

#[tokio::test]
async fn crios_own_files_of_a_real_container_name_it_with_privileges_and_filter() {
    const CONTAINER: &str = "beb1ef43f6c3fc5f918a0c47afee9630c10966b3b567adeef3a9abe2eb180dd2";
    let directory = tempfile::tempdir().unwrap();
    let (states, below) = state(directory.path());
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/real-cluster/crio/oci-config.json");
    let userdata = below.join(CONTAINER).join("userdata");
    fs::create_dir_all(&userdata).unwrap();
    fs::copy(recorded, userdata.join("config.json")).unwrap();
    let known = states[0].read(CONTAINER, &["HOSTNAME".to_owned()]).unwrap().unwrap();
    assert_eq!((known.pod_namespace.as_str(), known.pod_name.as_str()), ("shop", "web-7c9d8f6b5-x2x7k"));
    assert_eq!((known.name.as_str(), known.image.as_str()), ("app", "localhost/bb:latest"));
    assert_eq!(known.pod_uid, "95404c95-ae1f-4c16-a2f0-a2642aef5193");
    assert_eq!((known.facts.privileged.as_str(), known.facts.logs_exec.as_str()), ("no", "yes"));
    assert_eq!(known.facts.seccomp_profile, "/var/lib/kubelet/seccomp/audit.json");
    assert_eq!(known.facts.own_environment, ["HOSTNAME=vm"]);
}

/// Asks for a counter that comes with batches until it has reached what is wanted; that batch.
async fn ask_until(
    batches: &mpsc::Sender<Captured>,
    named: &mut mpsc::Receiver<Batch>,
    name: &str,
    wanted: impl Fn(u64) -> bool,
) -> Batch {
    for _ in 0..6_000 {
        batches.send(Captured { counters: Some(Vec::new()), ..captured(Vec::new()) }).await.unwrap();
        let batch = named.recv().await.unwrap();
        if wanted(counter(&batch, name)) {
            return batch;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name}: not in a minute");
}

fn counter(batch: &Batch, name: &str) -> u64 {
    batch.counters.iter().flatten().find(|(of, _)| *of == name).map(|(_, value)| *value).unwrap()
}

/// Every container's specification is there for fifty milliseconds or until it was looked up, whichever takes longer, so that
/// what is tested is when the agent looks and not how fast this machine is: it must look when it is told of the cgroup, since
/// the first record comes when there is nothing left to read. Of every hundredth container there is nothing at any time.
#[tokio::test]
async fn of_a_thousand_containers_that_live_fifty_milliseconds_all_but_a_few_are_named_and_the_rest_is_counted() {
    const CONTAINERS: u64 = 1000;
    const AT_ONCE: u64 = 250;
    const NOTHING_OF: u64 = 100;
    let directory = tempfile::tempdir().unwrap();
    let (states, below) = state(directory.path());
    let (batches, captured_batches) = mpsc::channel(2);
    let (told, made) = made();
    let naming = Naming::new(Lookup::new(states, None, &[])).with_patience(Duration::from_secs(1));
    let mut named = start_naming(captured_batches, made, naming);
    let (mut with, mut without) = (HashSet::new(), HashSet::new());
    let mut to_be_known = 0;
    for first in (0..CONTAINERS).step_by(AT_ONCE as usize) {
        let ids: Vec<(u64, String)> = (first..first + AT_ONCE).map(|number| (number, id(number))).collect();
        for (number, id) in &ids {
            if number % NOTHING_OF != 0 {
                specification(&below, id, "short");
                to_be_known += 1;
            }
            // The kernel tells of the cgroup, in which the pipeline recognises the container.
            told.send(id.as_str().into()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        ask_until(&batches, &mut named, "containers_resolved", |known| known >= to_be_known).await;
        ids.iter().for_each(|(_, id)| drop(fs::remove_dir_all(below.join(id))));
        batches.send(captured(ids.iter().map(|(number, id)| record(*number, id)).collect())).await.unwrap();
        for record in named.recv().await.unwrap().records {
            let id = record.container.clone().unwrap().id;
            let is_new = if names(&record).0 == "short" { with.insert(id) } else { without.insert(id) };
            assert!(is_new, "{record:?}");
        }
    }
    let last = ask_until(&batches, &mut named, "containers_pending", |pending| pending == 0).await;
    let unresolved = counter(&last, "containers_unresolved");
    assert!(with.len() as u64 * 100 >= CONTAINERS * 99, "{} named", with.len());
    assert_eq!(with.len() as u64 + unresolved, CONTAINERS, "each is one or the other");
    assert_eq!(without.len() as u64, unresolved);
}

#[tokio::test]
async fn names_that_come_late_are_an_amendment_of_the_records_that_went_out_without() {
    let directory = tempfile::tempdir().unwrap();
    let (states, below) = state(directory.path());
    let (batches, captured_batches) = mpsc::channel(2);
    let (_told, made) = made();
    let mut named = start_naming(captured_batches, made, Naming::new(Lookup::new(states, None, &["A".to_owned()])));
    batches.send(captured(vec![record(1, &id(5)), record(2, &id(5)), record(3, &id(6))])).await.unwrap();
    let first = named.recv().await.unwrap();
    assert!(first.records.iter().all(|record| names(record).1.starts_with("unresolved: ")), "{first:?}");
    specification(&below, &id(5), "late");
    let batch = named.recv().await.unwrap();
    let (record, amendment) = amendments(&batch).next().unwrap();
    assert_eq!(amendment.record_ids, ["boot:1:t1", "boot:1:t2"]);
    assert_eq!((record.id.as_str(), names(record)), ("boot:1:n1", ("late", "state")));
    let facts = amendment.container_facts.as_ref().unwrap();
    assert_eq!(
        (facts.own_environment.as_slice(), facts.seccomp_profile.as_str()),
        (&["A=1".to_owned()][..], "Unconfined")
    );
    assert_eq!(batch.watermark_unix_ns, 7, "an amendment takes no watermark back");
}

#[tokio::test]
async fn without_anybody_to_ask_a_container_is_unresolved_once_and_says_why() {
    let mut naming = Naming::new(Lookup::default());
    let mut batch = Batch::from(captured(vec![record(1, &id(1)), record(2, &id(1))]));
    naming.name(&mut batch.records).await;
    assert!(names(&batch.records[1]).1.contains("neither a CRI socket nor"), "{batch:?}");
    assert_eq!(naming.counts().unresolved, 1);
}

type Events = mpsc::Receiver<Result<cri::ContainerEventResponse, Status>>;

/// A runtime that answers from a table.
#[derive(Clone, Default)]
struct Fake {
    /// By id, the pod's name.
    containers: Arc<Mutex<HashMap<String, String>>>,
    events: Arc<Mutex<Option<Events>>>,
}

type Reply<T> = Result<Response<T>, Status>;

fn unused<T>() -> Reply<T> {
    Err(Status::unimplemented("the agent only reads"))
}

#[tonic::async_trait]
impl RuntimeService for Fake {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Reply<cri::VersionResponse> {
        Ok(Response::new(cri::VersionResponse::default()))
    }

    async fn list_containers(&self, _: Request<cri::ListContainersRequest>) -> Reply<cri::ListContainersResponse> {
        Ok(Response::new(cri::ListContainersResponse::default()))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Reply<cri::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let sandbox = cri::PodSandbox {
            id: filter.id.clone(),
            metadata: Some(cri::PodSandboxMetadata { name: "sandboxed".into(), ..Default::default() }),
            ..Default::default()
        };
        let items = if filter.id == id(9) { vec![sandbox] } else { Vec::new() };
        Ok(Response::new(cri::ListPodSandboxResponse { items }))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Reply<cri::ContainerStatusResponse> {
        let cri::ContainerStatusRequest { container_id, verbose } = request.into_inner();
        assert!(verbose);
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = containers.get(&container_id).ok_or_else(|| Status::not_found("no such container"))?;
        let labels = [("io.kubernetes.pod.name".to_owned(), pod.clone())].into();
        let status = cri::CriContainerStatus { id: container_id, labels, ..Default::default() };
        let info = [("info".to_owned(), r#"{"privileged":true,"runtimeSpec":{"linux":{}}}"#.to_owned())].into();
        Ok(Response::new(cri::ContainerStatusResponse { status: Some(status), info }))
    }

    type GetContainerEventsStream = ReceiverStream<Result<cri::ContainerEventResponse, Status>>;

    async fn get_container_events(&self, _: Request<cri::GetEventsRequest>) -> Reply<Self::GetContainerEventsStream> {
        let taken = self.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Without events CRI-O ends the stream at once.
        Ok(Response::new(ReceiverStream::new(taken.unwrap_or_else(|| mpsc::channel(1).1))))
    }

    async fn run_pod_sandbox(&self, _: Request<cri::RunPodSandboxRequest>) -> Reply<cri::RunPodSandboxResponse> {
        unused()
    }
    async fn stop_pod_sandbox(&self, _: Request<cri::StopPodSandboxRequest>) -> Reply<cri::StopPodSandboxResponse> {
        unused()
    }
    async fn remove_pod_sandbox(
        &self,
        _: Request<cri::RemovePodSandboxRequest>,
    ) -> Reply<cri::RemovePodSandboxResponse> {
        unused()
    }
    async fn create_container(&self, _: Request<cri::CreateContainerRequest>) -> Reply<cri::CreateContainerResponse> {
        unused()
    }
    async fn start_container(&self, _: Request<cri::StartContainerRequest>) -> Reply<cri::StartContainerResponse> {
        unused()
    }
    async fn exec_sync(&self, _: Request<cri::ExecSyncRequest>) -> Reply<cri::ExecSyncResponse> {
        unused()
    }
    async fn exec(&self, _: Request<cri::ExecRequest>) -> Reply<cri::ExecResponse> {
        unused()
    }
}

fn serve(directory: &Path, fake: Fake) -> CriClient {
    let socket = directory.join("cri.sock");
    let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    tokio::spawn(
        tonic::transport::Server::builder().add_service(RuntimeServiceServer::new(fake)).serve_with_incoming(listener),
    );
    CriClient::new(socket)
}

#[tokio::test]
async fn by_cri_a_container_is_asked_for_with_its_status_and_a_sandbox_by_the_list() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    fake.containers.lock().unwrap().insert(id(8), "asked".into());
    let client = serve(directory.path(), fake);
    let mut naming = Naming::new(Lookup::new(Vec::new(), Some(client.clone()), &[]));
    let mut batch = Batch::from(captured(vec![record(1, &id(8)), record(2, &id(9))]));
    naming.name(&mut batch.records).await;
    assert_eq!(names(&batch.records[0]), ("asked", "cri"));
    assert_eq!(names(&batch.records[1]), ("sandboxed", "cri"));
    let known = client.clone().container(&id(8), &[]).await.unwrap().unwrap();
    assert_eq!((known.facts.privileged.as_str(), known.facts.seccomp_profile.as_str()), ("yes", "Unconfined"));
}

#[tokio::test]
async fn the_runtimes_events_tell_of_containers_before_their_first_record() {
    let directory = tempfile::tempdir().unwrap();
    let (events, receiver) = mpsc::channel(4);
    let fake = Fake { events: Arc::new(Mutex::new(Some(receiver))), ..Fake::default() };
    let client = serve(directory.path(), fake);
    let (told, mut made) = made();
    let follow = {
        let (client, told) = (client.clone(), told.clone());
        tokio::spawn(async move { client.events(&told).await })
    };
    for (container, kind) in
        [(1, cri::ContainerEventType::ContainerCreatedEvent), (2, cri::ContainerEventType::ContainerDeletedEvent)]
    {
        let event = cri::ContainerEventResponse {
            container_id: id(container),
            container_event_type: kind.into(),
            ..Default::default()
        };
        events.send(Ok(event)).await.unwrap();
    }
    drop(events);
    assert_eq!(follow.await.unwrap().unwrap(), 2);
    assert_eq!(made.try_recv().unwrap().as_ref(), id(1));
    assert!(made.try_recv().is_err());
    // And where there are none, the stream ends at once.
    assert_eq!(client.events(&told).await.unwrap(), 0);
}

#[tokio::test]
async fn a_runtime_that_is_gone_holds_up_no_records() {
    let directory = tempfile::tempdir().unwrap();
    let client = CriClient::new(directory.path().join("nobody.sock"));
    let mut naming = Naming::new(Lookup::new(Vec::new(), Some(client), &[]));
    let mut batch = Batch::from(captured((1..100).map(|number| record(number, &id(number))).collect()));
    naming.name(&mut batch.records).await;
    assert!(batch.records.iter().all(|record| names(record).1.starts_with("unresolved: ")));
}
