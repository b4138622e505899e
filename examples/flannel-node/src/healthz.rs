//! The health server: `/healthz` while the node runs and its forwarding makes progress, `/readyz` from the moment on when
//! it forwards.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::Error;

/// The number of requests that are answered at the same time. More wait in the queue of the socket.
const CONNECTIONS: usize = 16;
/// The longest accepted request head in bytes.
const HEAD: usize = 4096;
/// The longest time for one request.
const REQUEST: Duration = Duration::from_secs(5);
/// The delay after a failed accept, for example if the process has too many open files.
const PAUSE: Duration = Duration::from_secs(1);

/// The state that the server reports.
#[derive(Clone, Default)]
pub(crate) struct Health {
    state: Rc<Cell<State>>,
}

/// A moment in the life of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Starting,
    Forwarding,
    /// Packets wait and none is read.
    Stuck,
}

impl Health {
    /// Starts the server. It ends with the runtime.
    pub(crate) async fn serve(&self, address: SocketAddr) -> Result<(), Error> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| format!("the health server cannot listen on {address}: {error}"))?;
        let health = self.clone();
        spawn_local(async move {
            let free = Arc::new(Semaphore::new(CONNECTIONS));
            loop {
                let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let health = health.clone();
                        spawn_local(async move {
                            let _ = timeout(REQUEST, health.handle(stream)).await;
                            drop(permit);
                        });
                    }
                    Err(_) => sleep(PAUSE).await,
                }
            }
        });
        Ok(())
    }

    /// Reports from now on that the node forwards.
    pub(crate) fn set_ready(&self) {
        self.state.set(State::Forwarding);
    }

    /// Reports from now on that the node does not forward what it should, or that it does again. Returns true if this
    /// is a change.
    pub(crate) fn set_stuck(&self, is_stuck: bool) -> bool {
        let state = if is_stuck { State::Stuck } else { State::Forwarding };
        self.state.replace(state) != state
    }

    /// Answers one request and closes the connection.
    async fn handle(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::with_capacity(HEAD);
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if head.len() >= HEAD || stream.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        stream.write_all(response(&head, self.state.get()).as_bytes()).await?;
        stream.shutdown().await
    }
}

/// Returns the response to a request head.
fn response(head: &[u8], state: State) -> String {
    let line = head.split(|&byte| byte == b'\r').next().and_then(|line| std::str::from_utf8(line).ok());
    let mut words = line.unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let (status, body) = match path {
        _ if !words.next().is_some_and(|version| version.starts_with("HTTP/1.")) => ("400 Bad Request", "bad request"),
        "/healthz" | "/readyz" if state == State::Stuck => ("503 Service Unavailable", "the node is stuck"),
        "/healthz" => ("200 OK", "the node is running"),
        "/readyz" if state == State::Forwarding => ("200 OK", "the node forwards"),
        "/readyz" => ("503 Service Unavailable", "the node does not forward yet"),
        _ => ("404 Not Found", "only /healthz and /readyz exist"),
    };
    let length = body.len();
    let body = if method == "HEAD" { "" } else { body };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_the_status_of_flannel() {
        use State::{Forwarding, Starting, Stuck};
        for (request, state, status) in [
            ("GET /healthz HTTP/1.1\r\n\r\n", Starting, "200"),
            ("GET /healthz?verbose HTTP/1.0\r\n\r\n", Starting, "200"),
            ("POST /healthz HTTP/1.1\r\n\r\n", Starting, "200"),
            ("GET /readyz HTTP/1.1\r\n\r\n", Starting, "503"),
            ("GET /readyz HTTP/1.1\r\n\r\n", Forwarding, "200"),
            ("GET /healthz HTTP/1.1\r\n\r\n", Stuck, "503"),
            ("GET /readyz HTTP/1.1\r\n\r\n", Stuck, "503"),
            ("GET / HTTP/1.1\r\n\r\n", Forwarding, "404"),
            ("", Forwarding, "400"),
            ("GET /healthz", Forwarding, "400"),
            ("\u{fffd}\r\n\r\n", Forwarding, "400"),
        ] {
            let response = response(request.as_bytes(), state);
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {response}");
        }
        let head = response(b"HEAD /healthz HTTP/1.1\r\n\r\n", Forwarding);
        assert!(head.ends_with("\r\n\r\n") && head.contains("Content-Length: 19\r\n"), "{head}");
    }
}
