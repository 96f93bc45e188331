//! A way to the broker that is as slow as a test wants, and that can be cut.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::Error;

/// Forwards connections to one port.
pub struct Proxy {
    /// Port that it listens on.
    pub port: u16,
    pace: Arc<AtomicU64>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    listener: AbortHandle,
}

impl Proxy {
    /// Forwards to a local port at this many bytes a second per connection; the way back is not slowed down.
    pub async fn start(target: u16, pace: u64) -> Result<Proxy, Error> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let pace = Arc::new(AtomicU64::new(pace));
        let connections: Arc<Mutex<Vec<AbortHandle>>> = Arc::default();
        let accept = {
            let (pace, connections) = (Arc::clone(&pace), Arc::clone(&connections));
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let task = tokio::spawn(forward(client, target, Arc::clone(&pace)));
                    connections.lock().unwrap_or_else(PoisonError::into_inner).push(task.abort_handle());
                }
            }
        };
        Ok(Proxy { port, pace, connections, listener: tokio::spawn(accept).abort_handle() })
    }

    /// Sets the bytes that a connection may send in a second from now on.
    pub fn pace(&self, bytes: u64) {
        self.pace.store(bytes, Ordering::Relaxed);
    }

    /// Cuts all connections, with whatever is on its way. New ones are taken.
    pub fn cut(&self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.drain(..).for_each(|connection| connection.abort());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

async fn forward(client: TcpStream, target: u16, pace: Arc<AtomicU64>) -> std::io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", target)).await?;
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let there = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = from_client.read(&mut buffer).await?;
            if n == 0 {
                return std::io::Result::Ok(());
            }
            to_server.write_all(&buffer[..n]).await?;
            sleep(Duration::from_secs_f64(n as f64 / pace.load(Ordering::Relaxed).max(1) as f64)).await;
        }
    };
    tokio::select! {
        done = there => done,
        done = copy(&mut from_server, &mut to_client) => done.map(|_| ()),
    }
}
