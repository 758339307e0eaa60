//! A small HTTP server on tokio: every answer takes two calls of functions that patches change.

use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

static SERVED: AtomicU64 = AtomicU64::new(0);
/// The longest head of a request.
const HEAD: usize = 4096;

/// What so much costs.
#[inline(never)]
pub extern "C" fn price(amount: u64) -> u64 {
    std::hint::black_box(amount) * 3
}

/// A number that must not depend on who computes it.
#[inline(never)]
pub extern "C" fn checksum(number: u64) -> u64 {
    let mut number = std::hint::black_box(number);
    for _ in 0..8 {
        number = (number ^ (number >> 7)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    number
}

fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(8080u16);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        println!("ready");
        loop {
            let (stream, _) = listener.accept().await?;
            // A client that goes away in the middle is its own affair.
            tokio::spawn(async move { serve(stream).await.ok() });
        }
    })
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(HEAD);
    loop {
        let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") else {
            if head.len() > HEAD || stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let body = if head.starts_with(b"GET /count ") {
            format!("{}", SERVED.load(Ordering::Relaxed))
        } else {
            SERVED.fetch_add(1, Ordering::Relaxed);
            format!("{} {:016x}", price(100), checksum(100))
        };
        head.drain(..end + 4);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await?;
    }
}
