//! The streams of the fake runtime, served by `knarr_streaming`: programs that do what their words say.
//!
//! `both OUT ERR` writes to both outputs, `end CODE` ends with a code, `fail TEXT` has no end that is known, `flags` says
//! which streams it has, `cat` copies its input, `take COUNT` reads so many bytes and no more, `much COUNT` writes so many,
//! `sizes` says each size of its terminal until it is sent "q", `stay` ends when its client goes. An attached container
//! says its flags, copies its input, and ends with code 7 when it is sent "end".

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use knarr_cri_api::v1::*;
use knarr_streaming::server::{Command, CommandSession, Offer, PortForward, Server, Settings};
use knarr_streaming::{BoxFuture, CommandEnd, Wanted};
use tonic::Status;

use crate::fake::{Fake, Tables};
use crate::tls;

const PIECE: usize = 32 << 10;

/// Starts the servers beside the runtime.
pub async fn serve(fake: &Fake) {
    let settings = Settings {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        base_url: None,
        tls: None,
        idle_timeout: Duration::from_secs(60),
        creation_timeout: Duration::from_secs(10),
        token_lifetime: Duration::from_secs(60),
        tokens_max: 100,
        sessions_max: 100,
    };
    let over_tls = Settings { tls: Some(tls::server_config()), ..settings.clone() };
    let servers = [Server::bind(settings).await.unwrap(), Server::bind(over_tls).await.unwrap()].map(Arc::new);
    for server in servers.clone() {
        tokio::spawn(async move { server.serve(std::future::pending()).await });
    }
    let mut tables = fake.tables.lock().unwrap();
    tables.streaming = Some(servers);
    tables.shared = Some(fake.tables.clone());
}

fn offer(tables: &Tables, offer: Offer) -> Result<String, Status> {
    let servers = tables.streaming.as_ref().unwrap();
    servers[usize::from(tables.over_tls)].offer(offer).map_err(|_| Status::resource_exhausted("too many tokens"))
}

type Shared = Arc<Mutex<Tables>>;

fn lock(tables: &Shared) -> MutexGuard<'_, Tables> {
    tables.lock().unwrap()
}

fn flags(wanted: Wanted) -> String {
    let flag = |set, name: &str| if set { format!(" {name}") } else { String::new() };
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    flag(stdin, "stdin") + &flag(stdout, "stdout") + &flag(stderr, "stderr") + &flag(tty, "tty")
}

pub fn exec(tables: &mut Tables, request: ExecRequest) -> Result<ExecResponse, Status> {
    let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
    let wanted = Wanted { stdin, stdout, stderr, tty };
    let name = tables.container(&container_id)?.metadata.clone().unwrap_or_default().name;
    tables.called("exec", &format!("{name}{}", flags(wanted)))?;
    if cmd == ["lost"] {
        return Ok(ExecResponse { url: "http://127.0.0.1:1/exec/lost".into() });
    }
    if cmd == ["secret"] {
        return Ok(ExecResponse { url: "https://127.0.0.1:1/exec/secret".into() });
    }
    let shared = tables.shared.clone().unwrap();
    let run = Box::new(move |session| -> BoxFuture<CommandEnd> { Box::pin(program(cmd, wanted, session, shared)) });
    Ok(ExecResponse { url: offer(tables, Offer::Exec(Command { wanted, run }))? })
}

async fn program(cmd: Vec<String>, wanted: Wanted, mut session: CommandSession, tables: Shared) -> CommandEnd {
    let words: Vec<&str> = cmd.iter().map(String::as_str).collect();
    let stdout = session.stdout.as_mut().unwrap();
    match words.as_slice() {
        ["both", out, err] => {
            let _ = stdout.send(Bytes::copy_from_slice(out.as_bytes())).await;
            if let Some(stderr) = &mut session.stderr {
                let _ = stderr.send(Bytes::copy_from_slice(err.as_bytes())).await;
            }
        }
        ["end", code] => return CommandEnd::Exited(code.parse().unwrap()),
        ["fail", text] => return CommandEnd::Failed((*text).to_owned()),
        ["flags"] => {
            let _ = stdout.send(Bytes::from(flags(wanted))).await;
        }
        ["cat"] => {
            while let Some(piece) = session.stdin.as_mut().unwrap().next().await {
                let _ = stdout.send(piece).await;
            }
        }
        ["take", count] => {
            let mut left: usize = count.parse().unwrap();
            while left > 0
                && let Some(piece) = session.stdin.as_mut().unwrap().next().await
            {
                let taken = piece.slice(..piece.len().min(left));
                left -= taken.len();
                let _ = stdout.send(taken).await;
            }
        }
        ["much", count] => {
            let mut left: usize = count.parse().unwrap();
            while left > 0 {
                let length = left.min(PIECE);
                left -= length;
                if stdout.send(Bytes::from(vec![b'x'; length])).await.is_err() {
                    lock(&tables).calls.push("much was cut off".to_owned());
                    break;
                }
            }
        }
        ["sizes"] => sizes(&mut session).await,
        ["stay"] => {
            let _ = stdout.send(Bytes::from_static(b"here")).await;
            session.client.gone().await;
            lock(&tables).calls.push("the client of stay has gone".to_owned());
        }
        _ => return CommandEnd::Failed(format!("no such program: {words:?}")),
    }
    CommandEnd::Success
}

async fn sizes(session: &mut CommandSession) {
    let stdout = session.stdout.as_mut().unwrap();
    let stdin = session.stdin.as_mut().unwrap();
    let resizes = session.resizes.as_mut().unwrap();
    loop {
        let text = tokio::select! {
            size = resizes.next() => match size {
                Some(size) => format!("{}x{}\r\n", size.columns, size.rows),
                None => return,
            },
            typed = stdin.next() => match typed {
                Some(typed) if typed.as_ref() != b"q" => format!("typed {typed:?}\r\n"),
                _ => return,
            },
        };
        let _ = stdout.send(Bytes::from(text)).await;
    }
}

pub fn attach(tables: &mut Tables, request: AttachRequest) -> Result<AttachResponse, Status> {
    let AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
    let wanted = Wanted { stdin, stdout, stderr, tty };
    let name = tables.container(&container_id)?.metadata.clone().unwrap_or_default().name;
    tables.called("attach", &format!("{name}{}", flags(wanted)))?;
    if let Some(refusal) = tables.refuses_stdin.as_ref().filter(|_| stdin) {
        return Err(refusal.clone());
    }
    let shared = tables.shared.clone().unwrap();
    let run = Box::new(move |session| -> BoxFuture<CommandEnd> {
        Box::pin(async move {
            attached(&container_id, wanted, session, &shared).await;
            CommandEnd::Success
        })
    });
    Ok(AttachResponse { url: offer(tables, Offer::Attach(Command { wanted, run }))? })
}

async fn attached(id: &str, wanted: Wanted, mut session: CommandSession, tables: &Shared) {
    let stdout = session.stdout.as_mut().unwrap();
    let _ = stdout.send(Bytes::from(format!("attached{}\r\n", flags(wanted)))).await;
    let Some(stdin) = &mut session.stdin else {
        return session.client.gone().await;
    };
    loop {
        let typed = tokio::select! {
            typed = stdin.next() => typed,
            () = session.client.gone() => None,
        };
        match typed {
            Some(typed) if typed.starts_with(b"end") => {
                // As of a container: the streams end a little before the status tells of it.
                let (id, tables) = (id.to_owned(), tables.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(120)).await;
                    lock(&tables).end(&id, 7);
                });
                return;
            }
            Some(typed) => {
                let _ = stdout.send(Bytes::from(format!("typed {typed:?}\r\n"))).await;
            }
            None => return,
        }
    }
}

pub fn port_forward(tables: &mut Tables, request: PortForwardRequest) -> Result<PortForwardResponse, Status> {
    tables.called("port_forward", &format!("{} {:?}", tables.pod(&request.pod_sandbox_id)?.id, request.port))?;
    let listening = tables.pod_ports.clone();
    let connect: knarr_streaming::server::Connect = Arc::new(move |port| {
        let address = listening.get(&port).copied();
        Box::pin(async move {
            match address {
                Some(address) => tokio::net::TcpStream::connect(address).await,
                None => Err(std::io::Error::other(format!("nobody listens on port {port}"))),
            }
        })
    });
    let ports = request.port.iter().map(|port| u16::try_from(*port).unwrap()).collect();
    Ok(PortForwardResponse { url: offer(tables, Offer::PortForward(PortForward { ports, connect }))? })
}
