//! The MachineConfig, the ConfigMap it travels in, and the patch of the NodePool.
//!
//! A NodePool's `spec.config` is a list of at most ten ConfigMaps in its own namespace, each with a key `config`; one
//! without that key is no configuration, without an error (openshift/hypershift
//! `hypershift-operator/controllers/nodepool/config.go`). A JSON patch that adds `/spec/config` replaces the list, and one
//! that adds `/spec/config/-` fails where there is none: which one is right depends on the NodePool.

use std::{io::Read, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{NodeArgs, NodeFiles, Output, RenderError, dns_name, recipe, yaml};

/// hypershift's CRD: MaxItems of spec.config.
const MAX_CONFIGS: usize = 10;
const MAX_INPUT: u64 = 8 << 20;

#[derive(Debug, Clone, Args)]
pub struct NodepoolArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    /// Namespace of HostedCluster and NodePool on the management cluster.
    #[arg(long, short = 'n', default_value = "clusters", value_parser = dns_name)]
    pub namespace: String,
    /// Name of the ConfigMap.
    #[arg(long, default_value = "seclog-seccomp", value_parser = dns_name)]
    pub config_map: String,
    /// The NodePool as `oc get nodepool NAME -o yaml` prints it, - for standard input: chooses the right patch.
    #[arg(long, value_name = "FILE")]
    pub nodepool: Option<PathBuf>,
    /// Print the patch alone, as JSON.
    #[arg(long, requires = "nodepool")]
    pub patch_only: bool,
    /// Write the official recipe's steps as they stand, with what is wrong with them for this version.
    #[arg(long)]
    pub like_recipe: bool,
}

pub(super) fn render(args: &NodepoolArgs, patch_file: bool) -> Result<Vec<Output>, RenderError> {
    if args.like_recipe {
        return Ok(vec![("recipe.yaml".into(), recipe::render(args)?)]);
    }
    let patch = match &args.nodepool {
        Some(path) => Some(patch(&NodePool::read(path)?, &args.config_map)?),
        None => None,
    };
    if let (true, Some(patch)) = (args.patch_only, &patch) {
        return Ok(vec![("nodepool-patch.json".into(), format!("{}\n", patch.json))]);
    }
    let files = args.node.node_files()?;
    let mut outputs = vec![("nodepool-configmap.yaml".into(), config_map(args, &files, patch.as_ref())?)];
    // On standard output the patch stands in the comments: a second document would be applied with the first.
    outputs.extend(patch.filter(|_| patch_file).map(|p| ("nodepool-patch.json".into(), format!("{}\n", p.json))));
    Ok(outputs)
}

fn config_map(args: &NodepoolArgs, files: &NodeFiles, patch: Option<&Patch>) -> Result<String, RenderError> {
    let version = args.node.version()?;
    let mut out = yaml::comment(&format!(
        "Makes the nodes of a NodePool log: CRI-O {version}, OpenShift {}. Apply it on the management cluster:\n\n\
         \x20 oc apply -f FILE\n\n\
         and make the NodePool use it:\n",
        version.openshift()
    ));
    out.push_str(&yaml::comment(&match patch {
        Some(patch) => patch.command(&args.namespace),
        None => Patch::either(&args.namespace, &args.config_map),
    }));
    out.push_str(&yaml::comment(
        "\nNodes are replaced, or rebooted with upgradeType InPlace. Containers that run keep the profile they started with.",
    ));
    for remark in &files.remarks {
        out.push_str(&yaml::comment(&format!("\nNote: {remark}")));
    }
    for namespace in &args.node.audit_namespaces {
        out.push_str(&yaml::comment(&format!(
            "\nPods of namespace {namespace}, on the hosted cluster, when these nodes are there:\n\n\
             \x20 oc -n {namespace} patch deployment NAME --type=merge -p '{}'",
            json!({"spec": {"template": {"spec": {"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "seclog/workload.json"}}}}}})
        )));
    }
    out.push_str("apiVersion: v1\nkind: ConfigMap\nmetadata:\n");
    out.push_str(&format!(
        "  name: {}\n  namespace: {}\n",
        yaml::scalar(&args.config_map),
        yaml::scalar(&args.namespace)
    ));
    out.push_str(
        "data:\n  # The key must be `config`: a ConfigMap without it is no configuration, and nobody says so.\n",
    );
    out.push_str("  config: |\n");
    out.push_str(&yaml::block(&machine_config(files), 4));
    Ok(out)
}

/// The MachineConfig: drop-in and profiles in one, so that no node ever has the one without the other.
fn machine_config(files: &NodeFiles) -> String {
    let mut out = String::from(
        "apiVersion: machineconfiguration.openshift.io/v1\nkind: MachineConfig\nmetadata:\n  name: 60-seclog-seccomp\n  \
         labels:\n    machineconfiguration.openshift.io/role: worker\nspec:\n  config:\n    ignition:\n      version: 3.2.0\n    \
         storage:\n      files:\n",
    );
    for (path, text) in &files.files {
        let plain = if path.ends_with(".conf") { text.as_str() } else { "" };
        out.push_str(&yaml::block(
            &plain
                .lines()
                .map(|l| if l.is_empty() { "#\n".to_owned() } else { format!("#   {l}\n") })
                .collect::<String>(),
            6,
        ));
        out.push_str(&format!(
            "      - path: {}\n        mode: 420 # 0644\n        overwrite: true\n        contents:\n          source: data:text/plain;charset=utf-8;base64,{}\n",
            yaml::scalar(path),
            STANDARD.encode(text)
        ));
    }
    out
}

/// A JSON patch, and whose.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Patch {
    nodepool: String,
    json: Value,
}

impl Patch {
    fn command(&self, namespace: &str) -> String {
        if self.json.as_array().is_some_and(Vec::is_empty) {
            return format!("  (NodePool {} uses it already: the applied ConfigMap is enough)", self.nodepool);
        }
        format!("  oc -n {namespace} patch nodepool {} --type=json -p '{}'", self.nodepool, self.json)
    }

    fn either(namespace: &str, config_map: &str) -> String {
        let whole = json!([{"op": "add", "path": "/spec/config", "value": [{"name": config_map}]}]);
        let one = json!([{"op": "add", "path": "/spec/config/-", "value": {"name": config_map}}]);
        format!(
            "if its spec.config is absent (this replaces the list!):\n  oc -n {namespace} patch nodepool NAME --type=json -p '{whole}'\n\
             if it has a list:\n  oc -n {namespace} patch nodepool NAME --type=json -p '{one}'\n\
             `--nodepool FILE` chooses."
        )
    }
}

/// The part of a NodePool that the patch depends on.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct NodePool {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    metadata: Option<Metadata>,
    #[serde(default)]
    spec: Option<Spec>,
    #[serde(default)]
    items: Option<Vec<NodePool>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default)]
    resource_version: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Spec {
    #[serde(default)]
    config: Option<Vec<Reference>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Reference {
    name: String,
}

impl NodePool {
    fn read(path: &std::path::Path) -> Result<Self, RenderError> {
        let shown = path.display().to_string();
        let failed = |source| RenderError::Read { path: shown.clone(), source };
        let mut text = String::new();
        if path.as_os_str() == "-" {
            std::io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text).map_err(failed)?;
        } else {
            std::fs::File::open(path).and_then(|f| f.take(MAX_INPUT).read_to_string(&mut text)).map_err(failed)?;
        }
        Self::parse(&text).map_err(|reason| RenderError::Nodepool { path: shown, reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let read: Self = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        // `oc get nodepool -o yaml` without a name gives a list.
        let pool = match read.items {
            Some(items) if items.len() == 1 => items.into_iter().next().ok_or("it is an empty list")?,
            Some(items) => return Err(format!("it is a list of {} objects; give one NodePool", items.len())),
            None => read,
        };
        match pool.kind.as_deref() {
            Some("NodePool") => Ok(pool),
            Some(kind) => Err(format!("its kind is {kind:?}")),
            None => Err("it has no kind".into()),
        }
    }
}

/// The patch that adds the ConfigMap, whatever the list is now.
pub(super) fn patch(pool: &NodePool, config_map: &str) -> Result<Patch, RenderError> {
    let refused = |text: String| RenderError::Refused(text);
    let metadata = pool.metadata.as_ref().ok_or_else(|| refused("the NodePool has no metadata".into()))?;
    let spec = pool.spec.as_ref().ok_or_else(|| refused(format!("NodePool {} has no spec", metadata.name)))?;
    let reference = json!({"name": config_map});
    let add = match &spec.config {
        Some(list) if list.iter().any(|r| r.name == config_map) => None,
        Some(list) if list.len() >= MAX_CONFIGS => {
            return Err(refused(format!(
                "NodePool {} has {} entries in spec.config, and no more than {MAX_CONFIGS} are allowed; put two of them into one ConfigMap",
                metadata.name,
                list.len()
            )));
        }
        Some(_) => Some(json!({"op": "add", "path": "/spec/config/-", "value": reference})),
        None => Some(json!({"op": "add", "path": "/spec/config", "value": [reference]})),
    };
    let json = match (add, &metadata.resource_version) {
        (None, _) => json!([]),
        // Somebody may add an entry meanwhile; the patch then fails instead of replacing it.
        (Some(add), Some(version)) => {
            json!([{"op": "test", "path": "/metadata/resourceVersion", "value": version}, add])
        }
        (Some(add), None) => json!([add]),
    };
    Ok(Patch { nodepool: metadata.name.clone(), json })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(config: &str) -> String {
        format!(
            "apiVersion: hypershift.openshift.io/v1beta1\nkind: NodePool\nmetadata:\n  name: workers\n  namespace: clusters\n  resourceVersion: \"77\"\nspec:\n  clusterName: demo\n{config}  replicas: 2\n"
        )
    }

    #[test]
    fn the_patch_fits_the_list_as_it_is() {
        for (config, expected) in [
            ("", json!(["seclog-seccomp"])),
            ("  config: null\n", json!(["seclog-seccomp"])),
            ("  config: []\n", json!(["seclog-seccomp"])),
            ("  config:\n  - name: tuned\n  - name: chrony\n", json!(["tuned", "chrony", "seclog-seccomp"])),
            ("  config:\n  - name: seclog-seccomp\n", json!(["seclog-seccomp"])),
        ] {
            let text = pool(config);
            let patch = patch(&NodePool::parse(&text).unwrap(), "seclog-seccomp").unwrap();
            let mut object: Value = serde_saphyr::from_str(&text).unwrap();
            let patch: json_patch::Patch = serde_json::from_value(patch.json).unwrap();
            json_patch::patch(&mut object, &patch).unwrap();
            let names: Vec<&Value> = object["spec"]["config"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
            assert_eq!(json!(names), expected, "{config:?}");
            assert_eq!(object["spec"]["replicas"], 2);
        }
    }

    #[test]
    fn a_list_that_changed_meanwhile_makes_the_patch_fail() {
        let patch = patch(&NodePool::parse(&pool("")).unwrap(), "x").unwrap();
        let mut object: Value = serde_saphyr::from_str(&pool("").replace("77", "78")).unwrap();
        let patch: json_patch::Patch = serde_json::from_value(patch.json).unwrap();
        assert!(json_patch::patch(&mut object, &patch).is_err());
    }

    #[test]
    fn what_is_no_nodepool_is_refused_with_the_reason() {
        for (text, reason) in [
            ("kind: ConfigMap\n", "its kind is \"ConfigMap\""),
            ("a: 1\n", "it has no kind"),
            ("kind: List\nitems: []\n", "it is a list of 0 objects; give one NodePool"),
        ] {
            assert_eq!(NodePool::parse(text).unwrap_err(), reason);
        }
        assert!(NodePool::parse("\u{0}\u{1}:\n  - {").is_err());
        let full: String = (0..10).map(|n| format!("  - name: c{n}\n")).collect();
        let full = NodePool::parse(&pool(&format!("  config:\n{full}"))).unwrap();
        assert!(patch(&full, "x").unwrap_err().to_string().contains("no more than 10"));
    }

    #[test]
    fn a_bomb_of_aliases_is_refused_quickly() {
        let mut text = String::from("kind: NodePool\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for n in 1..12 {
            let list = vec![format!("*a{}", n - 1); 10].join(",");
            text.push_str(&format!("a{n}: &a{n} [{list}]\n"));
        }
        let started = std::time::Instant::now();
        let _ = NodePool::parse(&text);
        assert!(started.elapsed().as_secs() < 5);
    }
}
