//! `knarr run`: runs the pods of a Kubernetes manifest.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use knarr_cri_api::v1;

use crate::client::Client;
use crate::failure::Failure;
use crate::log::{Printer, Selection};
use crate::lookup::{pod_name, pod_namespace};
use crate::output::{print, say};
use crate::pod_manifest::schema::{Manifest, RestartPolicy};
use crate::pod_manifest::{self, MAX_MANIFEST_BYTES, Validation};
use crate::pod_run::{PodRun, fetch_images, supervise};
use crate::session::Session;
use crate::signals::{Signals, exit_code_of};
use crate::teardown;

/// Options of `run`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr run examples/hello.yaml       follow the pod's logs; Ctrl-C stops and removes it
  knarr run --rm job.yaml             remove the pod when its containers have ended
  knarr run -d web.yaml               leave it running and print its id
  kubectl get pod web -o yaml | knarr run --validate warn -

In the foreground containers are restarted by the pod's restartPolicy, with kubelet's delays. A pod that is left running
(-d) has nobody to restart its containers: that takes a kubelet, or `knarr run` under systemd.

The exit code is that of the first container, or, where that is 0, of the first other one that failed; 125 says that the
pod could not be run.")]
pub struct RunArgs {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// Leaves the pods running and prints their ids
    #[arg(short, long)]
    detach: bool,
    /// Removes the pods when their containers have ended
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Each line of log with its time
    #[arg(short, long, conflicts_with = "detach")]
    timestamps: bool,
}

/// What `run` and `create` share.
#[derive(Debug, Args)]
pub struct ManifestArgs {
    /// A file of Pods, and of the ConfigMaps and Secrets that they use; `-` for standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Stops and removes pods of the same names first
    #[arg(long)]
    pub replace: bool,
    /// What to do about fields that Kubernetes does not have
    #[arg(long, value_enum, default_value = "strict")]
    pub validate: Validation,
    /// Shows no progress of pulls and no warnings
    #[arg(short, long)]
    pub quiet: bool,
}

/// Runs the pods. Returns the exit code of their containers, or 0 where they were left running.
pub async fn run(args: RunArgs, session: &Session) -> Result<u8, Failure> {
    run_pods(&args, session).await.map_err(Failure::own)
}

async fn run_pods(args: &RunArgs, session: &Session) -> Result<u8, Failure> {
    let manifest = read_manifest(&args.manifest)?;
    let client = session.connect().await?;
    make_room(&client, session, &manifest, args.manifest.replace).await?;
    let images = fetch_images(&client, &manifest, args.manifest.quiet).await?;
    let mut pods = Vec::new();
    for pod in &manifest.pods {
        pods.push(PodRun::new(&client, &session.cli_dir(), &manifest, &images, pod)?);
    }
    let uids: Vec<String> = pods.iter().map(|pod| pod.uid.clone()).collect();
    let mut signals = Signals::take_over()?;
    let made = tokio::select! {
        made = bring_up(&mut pods, args.detach) => made,
        signal = signals.next() => {
            let failures = remove_unfinished(&client, session, &uids).await;
            Failure::all(failures)?;
            return Ok(exit_code_of(signal));
        }
    };
    if let Err(failure) = made {
        let mut failures = vec![failure];
        failures.extend(remove_all(&client, session, &uids).await);
        Failure::all(failures)?;
    }
    if args.detach {
        if !args.manifest.quiet {
            warn_about_restarts(&manifest);
        }
        return print(&pods.iter().map(|pod| format!("{}\n", pod.sandbox_id)).collect::<String>()).map(|()| 0);
    }
    let selection = Selection { timestamps: args.timestamps, ..Selection::default() };
    let printer = Printer::new(selection, session.stdout_style(), session.stderr_style());
    match supervise(pods, printer, &mut signals).await {
        Ok(end) => {
            if args.rm || end.interrupted {
                Failure::all(remove_all(&client, session, &uids).await)?;
            }
            Ok(end.exit_code)
        }
        Err(failure) => {
            let mut failures = vec![failure];
            failures.extend(remove_all(&client, session, &uids).await);
            Failure::all(failures).map(|()| 0)
        }
    }
}

async fn bring_up(pods: &mut [PodRun<'_>], detach: bool) -> Result<(), Failure> {
    for pod in pods {
        pod.make_sandbox().await?;
        if detach {
            pod.start_all().await?;
        }
    }
    Ok(())
}

fn warn_about_restarts(manifest: &Manifest) {
    for pod in manifest.pods.iter().filter(|pod| pod.restart_policy != RestartPolicy::Never) {
        say(&format!(
            "warning: pod {}: nobody restarts its containers when they end: restartPolicy {:?} takes a kubelet, or `knarr run` \
             in the foreground, as under systemd",
            pod.name, pod.restart_policy
        ));
    }
}

/// Reads the file and says on standard error which fields are not honoured.
pub fn read_manifest(args: &ManifestArgs) -> Result<Manifest, Failure> {
    let (text, origin) = read_text(&args.file)?;
    let outcome = pod_manifest::manifest(&text, &origin, args.validate);
    if !args.quiet {
        for warning in &outcome.warnings {
            say(&format!("warning: {warning}"));
        }
    }
    outcome.manifest.map_err(|problems| Failure::usage(problems.join("\nerror: ")))
}

fn read_text(path: &Path) -> Result<(String, String), Failure> {
    let (origin, reader): (String, Box<dyn Read>) = if path == Path::new("-") {
        ("standard input".to_owned(), Box::new(std::io::stdin().lock()))
    } else {
        let shown = path.display().to_string();
        let file = std::fs::File::open(path).map_err(|error| Failure::io(format!("open {shown}"), &error))?;
        (shown, Box::new(file))
    };
    let mut text = String::new();
    let read = reader.take(MAX_MANIFEST_BYTES + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::io(format!("read {origin}"), &error))?;
    if text.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(Failure::usage(format!("{origin} is larger than {MAX_MANIFEST_BYTES} bytes")));
    }
    Ok((text, origin))
}

/// Pods of the same names: one that runs must be replaced on purpose; what is left of an earlier run makes room.
pub async fn make_room(client: &Client, session: &Session, manifest: &Manifest, replace: bool) -> Result<(), Failure> {
    let existing = client.pods().await?;
    let same = existing.iter().filter(|known| {
        manifest.pods.iter().any(|pod| pod.name == pod_name(known) && pod.namespace == pod_namespace(known))
    });
    let mut in_the_way = Vec::new();
    for pod in same {
        let ready = pod.state == v1::PodSandboxState::SandboxReady as i32;
        if ready && !replace {
            return Err(Failure::new(format!("pod {}/{} is running already", pod_namespace(pod), pod_name(pod)))
                .with_hint("replace it with --replace, or stop it with `knarr stop`"));
        }
        // What a kubelet left behind is the kubelet's to remove.
        if ready || replace || teardown::is_ours(pod) {
            in_the_way.push(pod);
        }
    }
    for pod in in_the_way {
        let mut failures = teardown::stop_pod(client, &pod.id, pod_name(pod), None).await;
        failures.extend(teardown::remove_pod(client, &session.cli_dir(), pod).await);
        Failure::all(failures)?;
    }
    Ok(())
}

/// Removes everything that was made for these pods.
pub async fn remove_all(client: &Client, session: &Session, uids: &[String]) -> Vec<Failure> {
    let mut failures = Vec::new();
    for uid in uids {
        failures.extend(teardown::remove_by_uid(client, &session.cli_dir(), uid).await);
    }
    failures
}

/// How long a runtime may take to finish or undo a sandbox whose client has gone.
const UNFINISHED_WAIT: Duration = Duration::from_secs(2);

/// After a signal in the midst of RunPodSandbox the sandbox may appear only now: a second look catches it.
async fn remove_unfinished(client: &Client, session: &Session, uids: &[String]) -> Vec<Failure> {
    let mut failures = remove_all(client, session, uids).await;
    tokio::time::sleep(UNFINISHED_WAIT).await;
    failures.extend(remove_all(client, session, uids).await);
    failures
}
