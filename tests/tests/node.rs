//! The laboratory's own node: containers are real, and gone afterwards.

use seclog_tests::lab::{audit_record::SeccompRecord, audit_socket::Observer, exclusive, node::Node, skip};

#[tokio::test(flavor = "multi_thread")]
async fn a_streaming_exec_gives_output_exit_code_and_audit_records_and_leaves_nothing_behind() {
    if let Some(reason) = Node::unavailable() {
        return skip("a_streaming_exec_gives_output_exit_code_and_audit_records_and_leaves_nothing_behind", reason);
    }
    let _turn = exclusive::turn("containers").unwrap();
    let node = Node::start().await.unwrap();
    let pod = node.run_pod("shop", "web-0", "app").await.unwrap();

    let observer = Observer::start().unwrap();
    let output = node.exec(&pod, &["sh", "-c", "id; cat /etc/hostname; echo oops >&2; exit 3"]).await.unwrap();
    assert!(output.stdout.starts_with("uid=0(root)"), "{output:?}");
    assert_eq!((output.stderr.as_str(), output.exit_code), ("oops\n", 3));
    let output = node.exec_sync(&pod, &["echo", "probe"]).await.unwrap();
    assert_eq!((output.stdout.as_str(), output.exit_code), ("probe\n", 0));

    let heard = observer.finish().unwrap();
    let records: Vec<_> = heard.records.iter().map(|text| SeccompRecord::parse(text).unwrap()).collect();
    let execve = |record: &&SeccompRecord| record.syscall == libc::SYS_execve && record.code == libc::SECCOMP_RET_LOG;
    assert!(records.iter().filter(execve).any(|record| record.comm == b"runc:[2:INIT]"), "{records:?}");
    assert!(records.iter().filter(execve).any(|record| record.comm == b"sh"), "{records:?}");

    let directory = node.socket().parent().unwrap().to_owned();
    drop(node);
    assert!(!directory.exists());
    let processes = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let read =
            |name| std::fs::read(entry.path().join(name)).map(|text| String::from_utf8_lossy(&text).into_owned());
        read("cmdline").is_ok_and(|text| text.contains(&*directory.to_string_lossy()))
            || read("cgroup").is_ok_and(|text| text.contains(&pod.uid))
    });
    assert_eq!(processes.count(), 0);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*directory.to_string_lossy()), "{mounts}");
    assert!(
        !std::path::Path::new("/sys/fs/cgroup/unified")
            .join(&seclog_tests::lab::cri::Pod::cgroup(&pod.uid)[1..])
            .exists()
    );
}
