//! What listens inside a pod.

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// Something inside a pod: `act` for each connection.
pub async fn inside<F>(act: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback can be listened on");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(act(tcp));
        }
    });
    port
}

/// Says what it hears.
pub async fn echo() -> u16 {
    inside(|mut tcp| async move {
        let (mut read, mut write) = tcp.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}
