//! A client's byte stream: plain, or inside TLS. What speaks HTTP above does not care which.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Longest time that writing a last word may take.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Most bytes of several pieces that are put together before they are written: copying them costs less than a list of pieces costs
/// the system.
const TOGETHER: usize = 4_096;

/// Writes pieces as one, as far as the socket takes them.
#[inline]
pub(crate) fn poll_write_pieces<S: AsyncWrite>(
    socket: Pin<&mut S>,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    if length > TOGETHER {
        return socket.poll_write_vectored(cx, pieces);
    }
    let mut space = [const { MaybeUninit::uninit() }; TOGETHER];
    let mut whole = ReadBuf::uninit(&mut space);
    pieces.iter().for_each(|piece| whole.put_slice(piece));
    socket.poll_write(cx, whole.filled())
}

/// Plain or TLS.
pub(crate) enum Stream {
    Plain(TcpStream),
    /// Boxed: the state of TLS must not make plain connections larger.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Ready when something can be read. Only for streams that were read until nothing more came: what TLS has buffered does
    /// not show here.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => socket.poll_read_ready(cx),
            Self::Tls(tls) => tls.get_ref().0.poll_read_ready(cx),
        }
    }

    /// Whether something has come that was not read: asks the system, which may know more than the runtime has heard.
    pub(crate) fn has_bytes(&self) -> bool {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.get_ref().0,
        };
        matches!(SockRef::from(socket).peek(&mut [MaybeUninit::uninit(); 1]), Ok(1..))
    }

    /// Closes in order: TLS says that it ends, so that the client can tell it from being cut off.
    pub(crate) async fn close(mut self) {
        if matches!(self, Self::Tls(_)) {
            // Whoever does not take the few bytes has gone.
            let _ = tokio::time::timeout(LAST_WORD, self.shutdown()).await;
        }
    }

    /// Writes what the client is told before the connection closes; `false` when it can't be told.
    pub(crate) async fn last_word(&mut self, bytes: &[u8]) -> bool {
        let write = async {
            self.write_all(bytes).await?;
            self.flush().await
        };
        matches!(tokio::time::timeout(LAST_WORD, write).await, Ok(Ok(())))
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_arrive_as_one_whether_few_bytes_or_many() {
        for sizes in [&[0, 0][..], &[1, 2, 3], &[4_000, 96], &[4_000, 97], &[10, 20_000, 5]] {
            let texts: Vec<Vec<u8>> = sizes.iter().zip(b'a'..).map(|(n, b)| vec![b; *n]).collect();
            let pieces: Vec<_> = texts.iter().map(|text| IoSlice::new(text)).collect();
            let mut written = io::Cursor::new(Vec::new());
            let n = std::future::poll_fn(|cx| poll_write_pieces(Pin::new(&mut written), cx, &pieces)).await;
            assert_eq!(n.expect("written"), texts.concat().len(), "{sizes:?}");
            assert_eq!(written.into_inner(), texts.concat());
        }
    }
}
