//! A way to a server that is as slow as a test wants, and that can be cut, reset, frozen and delayed, or change what it forwards.

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::Error;

/// Forwards connections to one port.
pub struct Proxy {
    /// Port that it listens on.
    pub port: u16,
    way: Arc<Way>,
    reset: watch::Sender<()>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    listener: AbortHandle,
}

/// What all connections of a proxy have in common.
#[derive(Default)]
struct Way {
    /// Bytes a second to the server.
    pace: AtomicU64,
    /// Nothing is forwarded to the server, or from it.
    frozen: [AtomicBool; 2],
    /// What freezes it when it comes along on the way to the server, and in which direction.
    trap: Mutex<Option<(Vec<u8>, Direction)>>,
    /// What is changed on the way to the server, and into what.
    rewritten: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
    /// The connection that says this to the server is heard no more, on either side, and stays open.
    swallowed: Mutex<Option<Vec<u8>>>,
    /// Each chunk waits this long, in either direction.
    delay_ms: AtomicU64,
    /// Chunks that had to wait for either.
    held: AtomicU64,
}

impl Way {
    fn trap(&self) -> MutexGuard<'_, Option<(Vec<u8>, Direction)>> {
        self.trap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is to be changed.
    fn rewrite(&self, chunk: &mut [u8]) {
        let rewritten = self.rewritten.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((from, to)) = &*rewritten else { return };
        for at in 0..=chunk.len().saturating_sub(from.len()) {
            if chunk[at..].starts_with(from) {
                chunk[at..at + to.len()].copy_from_slice(to);
            }
        }
    }

    /// Whether these bytes are what a connection is to be lost at.
    fn swallows(&self, chunk: &[u8]) -> bool {
        let mut swallowed = self.swallowed.lock().unwrap_or_else(PoisonError::into_inner);
        swallowed.take_if(|bytes| contains(chunk, bytes)).is_some()
    }

    /// Freezes if these bytes are what was waited for.
    fn look(&self, chunk: &[u8]) {
        let mut trap = self.trap();
        if let Some((_, direction)) = trap.take_if(|(bytes, _)| contains(chunk, bytes)) {
            self.frozen[direction as usize].store(true, Ordering::Relaxed);
        }
    }
}

fn contains(chunk: &[u8], bytes: &[u8]) -> bool {
    chunk.windows(bytes.len()).any(|part| part == bytes)
}

/// To the server, or from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What the worker says.
    There,
    /// What it hears.
    Back,
}

impl Proxy {
    /// Forwards to a local port at this many bytes a second per connection; the way back is not slowed down.
    pub async fn start(target: u16, pace: u64) -> Result<Proxy, Error> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let way = Arc::new(Way { pace: AtomicU64::new(pace), ..Way::default() });
        let reset = watch::Sender::new(());
        let connections: Arc<Mutex<Vec<AbortHandle>>> = Arc::default();
        let accept = {
            let (way, reset, connections) = (Arc::clone(&way), reset.clone(), Arc::clone(&connections));
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let task = tokio::spawn(forward(client, target, Arc::clone(&way), reset.subscribe()));
                    connections.lock().unwrap_or_else(PoisonError::into_inner).push(task.abort_handle());
                }
            }
        };
        Ok(Proxy { port, way, reset, connections, listener: tokio::spawn(accept).abort_handle() })
    }

    /// Sets the bytes that a connection may send in a second from now on.
    pub fn pace(&self, bytes: u64) {
        self.way.pace.store(bytes, Ordering::Relaxed);
    }

    /// Cuts all connections, with whatever is on its way. New ones are taken.
    pub fn cut(&self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.drain(..).for_each(|connection| connection.abort());
    }

    /// Resets all connections (RST instead of FIN). New ones are taken.
    pub fn reset(&self) {
        self.reset.send_replace(());
    }

    /// Stops to forward in this direction, or goes on. Connections stay open and nothing gets lost.
    pub fn freeze(&self, direction: Direction, frozen: bool) {
        self.way.frozen[direction as usize].store(frozen, Ordering::Relaxed);
    }

    /// Stops to forward in this direction as soon as these bytes are on their way to the server: with them, or with the
    /// answer.
    pub fn freeze_at(&self, direction: Direction, bytes: &[u8]) {
        *self.way.trap() = Some((bytes.to_owned(), direction));
    }

    /// Loses the first connection that says this to the server: it stays open, and nothing comes through any more. Others go on.
    pub fn swallow_at(&self, bytes: &[u8]) {
        *self.way.swallowed.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes.to_owned());
    }

    /// Changes these bytes on their way to the server into others, as many.
    pub fn rewrite(&self, from: &[u8], to: &[u8]) {
        assert_eq!(from.len(), to.len());
        *self.way.rewritten.lock().unwrap_or_else(PoisonError::into_inner) = Some((from.to_owned(), to.to_owned()));
    }

    /// Each chunk waits so long from now on.
    pub fn delay(&self, delay: Duration) {
        self.way.delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many chunks had to wait because the way was frozen or slow.
    pub fn held(&self) -> u64 {
        self.way.held.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

async fn forward(client: TcpStream, target: u16, way: Arc<Way>, mut reset: watch::Receiver<()>) -> std::io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", target)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // The halves are given back, so that the connection is closed only when both directions are over.
    let (mut there, mut back) = ((from_client, to_server), (from_server, to_client));
    let is_reset = tokio::select! {
        swallowed = pipe(&way, Direction::There, &mut there) => return if swallowed? { pending().await } else { Ok(()) },
        done = pipe(&way, Direction::Back, &mut back) => return done.map(drop),
        reset = reset.changed() => reset.is_ok(),
    };
    if is_reset {
        there.0.as_ref().set_zero_linger()?;
        back.0.as_ref().set_zero_linger()?;
    }
    Ok(())
}

/// Forwards until the end, or until something is swallowed, and tells which.
async fn pipe(way: &Way, direction: Direction, ends: &mut (OwnedReadHalf, OwnedWriteHalf)) -> std::io::Result<bool> {
    let (from, to) = ends;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(false);
        }
        if direction == Direction::There {
            if way.swallows(&buffer[..n]) {
                return Ok(true);
            }
            way.rewrite(&mut buffer[..n]);
            way.look(&buffer[..n]);
        }
        let delay = way.delay_ms.load(Ordering::Relaxed);
        let frozen = || way.frozen[direction as usize].load(Ordering::Relaxed);
        if delay > 0 || frozen() {
            way.held.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(delay)).await;
            while frozen() {
                sleep(Duration::from_millis(10)).await;
            }
        }
        to.write_all(&buffer[..n]).await?;
        if direction == Direction::There {
            let pace = way.pace.load(Ordering::Relaxed).max(1);
            sleep(Duration::from_secs_f64(n as f64 / pace as f64)).await;
        }
    }
}
