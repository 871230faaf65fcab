#[test]
fn fleet_starts() {
    let rt = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    rt.block_on(async {
        let t = std::time::Instant::now();
        let f = e2e::Fleet::start().await.unwrap();
        eprintln!("fleet {:?} {:?}", t.elapsed(), f.keeper);
        let h = f.host("h1");
        let t = std::time::Instant::now();
        h.power_cut().await.unwrap();
        eprintln!("cut {:?}", t.elapsed());
        h.power_on().await.unwrap();
        eprintln!("on {:?}", t.elapsed());
        h.kill_dockerd().await.unwrap();
        h.heal().await.unwrap();
        f.zookeeper.kill_leader().await.unwrap();
        f.zookeeper.up().await.unwrap();
        eprintln!("zk {:?}", t.elapsed());
        f.mariadb.down().await.unwrap();
        f.mariadb.up().await.unwrap();
        h.steal_port(Some(20000)).await.unwrap();
        h.steal_port(None).await.unwrap();
        h.freeze_dockerd(true).await.unwrap();
        h.heal().await.unwrap();
        let mut z = e2e::zk::Zk::connect(f.zookeeper.ports[0]).await.unwrap();
        eprintln!("{:?} {:?}", z.children("/").await.unwrap(), t.elapsed());
        if std::env::var("HANG").is_ok() {
            std::future::pending::<()>().await
        }
    });
}
