//! A server that speaks CRI-O's HTTP and CRI on one unix socket, and what the check makes of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod common;

use std::path::{Path, PathBuf};

use common::{DROPIN, Node, PROFILE};
use hyper_util::{rt::TokioExecutor, rt::TokioIo, service::TowerToHyperService};
use seclog_dropin::{check, finding::Code, report::Report};
use seclog_proto::cri::{
    self,
    runtime_service_server::{RuntimeService, RuntimeServiceServer},
};
use tonic::{Request, Response, Status};

/// CRI-O 1.37 as recorded, with its containers.
#[derive(Clone)]
struct Recorded {
    version: &'static str,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RuntimeService for Recorded {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        Ok(Response::new(cri::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "cri-o".into(),
            runtime_version: self.version.into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn list_containers(&self, _: Request<cri::ListContainersRequest>) -> Answer<cri::ListContainersResponse> {
        let list: serde_json::Value = serde_json::from_str(include_str!("fixtures/list-containers.json")).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let containers = list["containers"].as_array().unwrap().iter().map(|c| cri::CriContainer {
            id: text(&c["id"]),
            state: cri::ContainerState::from_str_name(c["state"].as_str().unwrap()).unwrap().into(),
            labels: c["labels"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), text(v))).collect(),
            created_at: text(&c["createdAt"]).parse().unwrap(),
            ..cri::CriContainer::default()
        });
        Ok(Response::new(cri::ListContainersResponse { containers: containers.collect() }))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let request = request.into_inner();
        assert!(request.verbose);
        let recorded: serde_json::Value =
            serde_json::from_str(include_str!("fixtures/container-status-verbose.json")).unwrap();
        if recorded["status"]["id"] != request.container_id.as_str() {
            return Err(Status::not_found("only one status was recorded"));
        }
        let info = [("info".to_owned(), recorded["info"].to_string())].into();
        Ok(Response::new(cri::ContainerStatusResponse { status: None, info }))
    }

    async fn list_pod_sandbox(&self, _: Request<cri::ListPodSandboxRequest>) -> Answer<cri::ListPodSandboxResponse> {
        unreachable!("the check asks for containers only")
    }
    async fn run_pod_sandbox(&self, _: Request<cri::RunPodSandboxRequest>) -> Answer<cri::RunPodSandboxResponse> {
        unreachable!("the check only reads")
    }
    async fn stop_pod_sandbox(&self, _: Request<cri::StopPodSandboxRequest>) -> Answer<cri::StopPodSandboxResponse> {
        unreachable!("the check only reads")
    }
    async fn remove_pod_sandbox(
        &self,
        _: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        unreachable!("the check only reads")
    }
    async fn create_container(&self, _: Request<cri::CreateContainerRequest>) -> Answer<cri::CreateContainerResponse> {
        unreachable!("the check only reads")
    }
    async fn start_container(&self, _: Request<cri::StartContainerRequest>) -> Answer<cri::StartContainerResponse> {
        unreachable!("the check only reads")
    }
    async fn exec_sync(&self, _: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        unreachable!("the check only reads")
    }
    type GetContainerEventsStream = tokio_stream::Empty<Result<cri::ContainerEventResponse, Status>>;
    async fn get_container_events(&self, _: Request<cri::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        unreachable!("the check follows no events")
    }
    async fn exec(&self, _: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        unreachable!("the check only reads")
    }
}

/// Serves gRPC and `GET /config` on one socket as CRI-O does, until the test ends.
fn serve(socket: PathBuf, version: &'static str, config: String) -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = {
        let _entered = runtime.enter();
        tokio::net::UnixListener::bind(&socket).unwrap()
    };
    let grpc = tonic::service::Routes::new(RuntimeServiceServer::new(Recorded { version }));
    runtime.spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let (mut grpc, config) = (grpc.clone(), config.clone());
            let service = tower::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let config = config.clone();
                let asked = request.uri().path().to_owned();
                let answer = (request.version() == hyper::Version::HTTP_2)
                    .then(|| tower::Service::call(&mut grpc, request.map(tonic::body::Body::new)));
                async move {
                    match answer {
                        Some(answer) => answer.await,
                        None => {
                            assert_eq!(asked, "/config", "nothing else is asked over HTTP");
                            let body = http_body_util::Full::new(hyper::body::Bytes::from(config));
                            Ok(hyper::Response::new(tonic::body::Body::new(body)))
                        }
                    }
                }
            });
            tokio::spawn(async move {
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                    .await;
            });
        }
    });
    runtime
}

fn recorded_config() -> &'static str {
    include_str!("fixtures/crio-1.37-config.toml")
}

/// Findings about the live state, in order.
fn live_findings(report: &Report) -> Vec<String> {
    let codes = [
        Code::LiveDiffers,
        Code::LiveHandlerDropped,
        Code::SocketUnknown,
        Code::ChangedSinceStart,
        Code::ContainersUnknown,
    ];
    let shown = report.findings.iter().filter(|f| codes.contains(&f.code));
    shown.map(|f| format!("{} {} | {}", f.severity, f.code, f.what)).collect()
}

fn node_with_socket(node: Node, version: &'static str, config: String) -> (Node, tokio::runtime::Runtime) {
    // /var/run is a link on every node; the socket is found through it, inside the root.
    let node = node.dir("/var").link("/var/run", "/run");
    let server = serve(node.at("/run/crio/crio.sock"), version, config);
    (node, server)
}

#[test]
fn the_recorded_crio_tells_version_configuration_and_containers() {
    let node = Node::empty().file(
        "/etc/crio/crio.conf.d/10.conf",
        "[crio.runtime]\ndefault_runtime = \"runc\"\n[crio.runtime.runtimes.runc]\nruntime_root = \"/run/runc\"\n[crio.runtime.runtimes.crun]\nruntime_root = \"/run/crun\"\n",
    );
    let (node, _server) = node_with_socket(node, "1.37.0", recorded_config().into());
    let report = node.report();
    assert_eq!(report.crio.source, Some("socket"));
    assert_eq!(report.crio.version.unwrap().minor, 37);
    assert!(report.effective.live);
    assert_eq!(report.effective.default_runtime.as_deref(), Some("runc"));
    assert_eq!(live_findings(&report), [] as [&str; 0]);
    assert!(report.findings.iter().any(|f| f.code == Code::DropinMissing), "CRI-O runs without any profile");
    let containers: Vec<_> =
        report.containers.iter().map(|c| (c.namespace.as_str(), c.logs, c.does_not_log, c.unknown)).collect();
    assert_eq!(containers, [("shop", 1, 0, 2)], "one status was recorded; the others are unknown, not silent");
}

#[test]
fn files_that_were_not_reloaded_are_told_from_what_runs() {
    for (name, config, expected) in [
        (
            "the drop-in came after the last reload",
            recorded_config().replace("default_runtime = \"runc\"", "default_runtime = \"crun\""),
            vec![format!(
                "error live-differs | CRI-O runs with privileged_seccomp_profile = nothing, its files say {PROFILE:?}"
            )],
        ),
        (
            "a flag overrides the file until the next reload",
            recorded_config()
                .replace("default_runtime = \"runc\"", "default_runtime = \"crun\"")
                .replace("privileged_seccomp_profile = \"\"", "privileged_seccomp_profile = \"/other.json\""),
            vec![format!(
                "error live-differs | CRI-O runs with privileged_seccomp_profile = \"/other.json\", its files say {PROFILE:?}"
            )],
        ),
        (
            "another default runtime, and a handler that CRI-O dropped",
            recorded_config()
                .replace("privileged_seccomp_profile = \"\"", &format!("privileged_seccomp_profile = {PROFILE:?}"))
                .replace("[crio.runtime.runtimes.runc]", "[crio.runtime.runtimes.other]"),
            vec![
                "error live-differs | CRI-O runs with default_runtime = \"runc\", its files say \"crun\"".to_owned(),
                "warning live-handler-dropped | CRI-O has no handler \"runc\", which the files declare".to_owned(),
            ],
        ),
    ] {
        let (node, _server) = node_with_socket(Node::openshift(37).with_dropin(), "1.37.1", config);
        // The recording's handlers have no annotations: that is another finding, of another test.
        let found: Vec<_> = live_findings(&node.report()).into_iter().filter(|f| !f.contains("runs handler")).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_live_profile_that_is_missing_is_found_although_no_file_names_it() {
    let config =
        recorded_config().replace("privileged_seccomp_profile = \"\"", "privileged_seccomp_profile = \"/gone.json\"");
    let (node, _server) = node_with_socket(Node::openshift(37), "1.37.1", config);
    let report = node.report();
    let missing = report.findings.iter().find(|f| f.code == Code::PrivilegedProfileMissing).unwrap();
    assert_eq!(missing.place.as_ref().unwrap().file, "GET /config");
}

#[test]
fn a_socket_that_answers_nonsense_leaves_the_live_state_unknown() {
    for config in ["not = = toml".to_owned(), "x".repeat(3 << 20)] {
        let (node, _server) = node_with_socket(Node::openshift(37).with_dropin(), "1.37.1", config);
        let report = node.report();
        assert!(!report.effective.live);
        assert!(live_findings(&report).iter().any(|f| f.starts_with("unknown socket-unknown")));
    }
}

#[test]
fn a_file_in_the_sockets_place_is_no_socket() {
    let node = Node::openshift(33).with_dropin().link("/var/run", "/run").file("/run/crio/crio.sock", "");
    let report = node.report();
    let unknown = report.findings.iter().find(|f| f.code == Code::SocketUnknown).unwrap();
    assert!(unknown.what.contains("cannot connect to CRI-O's socket"), "{}", unknown.what);
}

#[test]
fn the_check_may_be_called_from_an_asynchronous_program() {
    let (node, _server) = node_with_socket(Node::openshift(37).with_dropin(), "1.37.1", recorded_config().into());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let sources = node.sources();
    let report = runtime
        .block_on(async { tokio::task::spawn_blocking(move || check::run(&sources, None)).await })
        .unwrap()
        .unwrap();
    assert!(report.effective.live);
    assert!(Path::new(DROPIN).is_absolute());
}
