//! `knarr port-forward`: local ports joined to ports of a pod.

use clap::Args;
use knarr_cri_api::v1;
use knarr_streaming::client;

use crate::failure::Failure;
use crate::lookup::{Inventory, pod_name};
use crate::output::print;
use crate::remote::forward;
use crate::remote::listen::{Address, PortPair, listen_on};
use crate::remote::target::StreamArgs;
use crate::session::Session;
use crate::signals::Signals;

/// Options of `port-forward`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr port-forward web 8080:80      http://localhost:8080 is port 80 of pod web
  knarr port-forward web 80 443       the same ports here
  knarr port-forward web :80          a free port, which is printed
  knarr port-forward --address 0.0.0.0 web 8080:80

They reach what listens on the pod's loopback. A connection that fails is told of on standard error and does not end the \
                  others. Ctrl-C ends the forwarding, with exit code 0.")]
pub struct PortForwardArgs {
    /// The pod: name, namespace/name, id or beginning of an id
    #[arg(value_name = "POD")]
    pod: String,
    /// Ports; without LOCAL the same here as there, with LOCAL 0 or empty a free one
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    ports: Vec<PortPair>,
    /// Where to listen; may be given several times. localhost is 127.0.0.1 and ::1
    #[arg(long, value_name = "IP", value_delimiter = ',', default_value = "localhost")]
    address: Vec<Address>,
    #[command(flatten)]
    streams: StreamArgs,
}

/// Forwards until a signal ends it.
pub async fn run(args: PortForwardArgs, session: &Session) -> Result<u8, Failure> {
    let streams = args.streams.prepare()?;
    let client = session.connect().await?;
    let pod = Inventory::read(&client).await?.find_pod(&args.pod)?;
    let name = pod_name(&pod);
    let listeners = listen_on(&args.address, &args.ports)?;
    let message = v1::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: args.ports.iter().map(|pair| i32::from(pair.remote)).collect(),
    };
    let answer = client.port_forward(format!("forward ports of pod {name}"), message).await?;
    let target = streams.target(&answer.url)?;
    let connection = client::port_forward(&target).await;
    let connection =
        connection.map_err(|error| Failure::new(format!("cannot forward ports of pod {name}: {}", error.0)))?;
    // From here on Ctrl-C is how it ends, and not how it is broken off.
    let signals = Signals::take_over()?;
    print(&listeners.iter().map(|listener| format!("{listener}\n")).collect::<String>())?;
    forward::run(connection, listeners, signals).await
}
