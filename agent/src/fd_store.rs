//! Descriptors that the service manager keeps while the agent is started again (FileDescriptorStoreMax= in its unit).
//! It must not know what they are for.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use ferry_proto::Fault;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use sd_notify::NotifyState;

/// Names its socket in the environment.
const MANAGER: &str = "NOTIFY_SOCKET";

/// What the process before has left, by name. It is kept no longer. To be called once.
///
/// # Errors
/// The service manager does not say what it passes on.
pub fn take() -> Result<HashMap<String, OwnedFd>, Fault> {
    let passed = sd_notify::listen_fds_with_names()
        .map_err(|e| Fault::io("what the service manager has kept cannot be taken", &e))?;
    let mut kept = HashMap::new();
    for (fd, name) in passed {
        // SAFETY: systemd passed this descriptor to this process for its use, LISTEN_PID was checked, and this
        // function runs once: nobody else owns it.
        #[allow(unsafe_code)]
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let named = format!("FDNAME={name}");
        let released = [NotifyState::Custom("FDSTOREREMOVE=1"), NotifyState::Custom(&named)];
        if let Err(error) = sd_notify::notify(&released) {
            tracing::warn!(%error, "the service manager was not told to keep {name} no longer");
        }
        kept.insert(name, fd);
    }
    Ok(kept)
}

/// Whether there is a service manager.
pub fn is_there() -> bool {
    std::env::var_os(MANAGER).is_some()
}

/// Has the service manager keep a descriptor for the next process.
///
/// # Errors
/// There is none, or it cannot be told.
pub fn keep(name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    let none = || io::Error::new(ErrorKind::Unsupported, "no service manager keeps descriptors");
    send(&std::env::var_os(MANAGER).ok_or_else(none)?, name, fd)
}

fn send(manager: &OsStr, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    let address = match manager.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(manager.as_bytes())?,
    };
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    let text = format!("FDSTORE=1\nFDNAME={name}\n");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("a descriptor has no room in its message"));
    }
    let text = [IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg_addr(&socket, &address, &text, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Read};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

    use super::*;

    #[test]
    fn a_descriptor_goes_to_the_service_manager_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        send(dir.path().join("notify").as_os_str(), "journal-1", reader.as_fd()).unwrap();
        drop(reader);
        let mut text = [0; 100];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut text)];
        let told =
            rustix::net::recvmsg(&manager, &mut into, &mut control, RecvFlags::empty()).unwrap();
        assert_eq!(&text[..told.bytes], b"FDSTORE=1\nFDNAME=journal-1\n");
        let rights = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        std::io::Write::write_all(&mut &writer, b"kept").unwrap();
        drop(writer);
        let mut read = String::new();
        std::fs::File::from(rights.unwrap()).read_to_string(&mut read).unwrap();
        assert_eq!(read, "kept");
        send(dir.path().join("nobody").as_os_str(), "x", manager.as_fd()).unwrap_err();
    }
}
