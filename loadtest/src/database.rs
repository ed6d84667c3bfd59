//! Databases for benchmarks: one **template** with hosts and free addresses, and a fresh copy of it for each run, so that every
//! run begins with the same tables.

use anyhow::{Context, bail};
use contract::{HostId, ImageId};
use store::{Store, StoreConfig};
use tokio_postgres::NoTls;
use uuid::Uuid;

/// The most hosts: each gets a /16 of 10.0.0.0/8.
pub const HOSTS_MAX: u32 = 64;

/// A template in a PostgreSQL server; [`Template::drop_it`] removes it.
#[derive(Debug)]
pub struct Template {
    server: String,
    name: String,
    /// The hosts in it.
    pub hosts: Vec<HostId>,
    /// The image they hold.
    pub image: ImageId,
}

async fn connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("PostgreSQL cannot be reached")?;
    tokio::spawn(connection);
    Ok(client)
}

/// The same server, another database: in a URL or in `key=value` text, where the last one counts.
fn with_database(url: &str, database: &str) -> anyhow::Result<String> {
    if !url.contains("://") {
        return Ok(format!("{url} dbname={database}"));
    }
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let Some((scheme, rest)) = base.split_once("://") else { bail!("{url:?} is no PostgreSQL URL") };
    let authority = rest.split('/').next().unwrap_or(rest);
    Ok(format!("{scheme}://{authority}/{database}{}", query.map(|query| format!("?{query}")).unwrap_or_default()))
}

impl Template {
    /// Makes a template with that many hosts, each with almost all of a /16 free.
    ///
    /// # Errors
    /// The server cannot be reached or does not let us.
    pub async fn make(server: &str, hosts: u32) -> anyhow::Result<Self> {
        let tail = Uuid::new_v4().simple().to_string();
        let name = format!("warren_load_{}", &tail[..8]);
        let admin = connect(server).await?;
        admin.batch_execute(&format!("create database {name}")).await.context("a database cannot be created")?;
        let hosts = (1..=hosts).map(|n| format!("load-{n}").parse()).collect::<Result<Vec<HostId>, _>>()?;
        let template = Self { server: server.to_owned(), name, hosts, image: ImageId::new() };
        if let Err(error) = template.fill().await {
            template.drop_it().await?;
            return Err(error);
        }
        Ok(template)
    }

    async fn fill(&self) -> anyhow::Result<()> {
        let url = with_database(&self.server, &self.name)?;
        Store::connect(&url, StoreConfig::default()).await?.migrate().await?;
        let sql = connect(&url).await?;
        let image = "insert into image.image (id, digest, source, architecture, rootfs_bytes, config) \
                     values ($1, 'sha256:0', 'load', 'amd64', 1, '{}')";
        sql.execute(image, &[&self.image.0]).await?;
        for (n, host) in self.hosts.iter().enumerate() {
            let subnet = format!("10.{n}.0.0/16");
            sql.execute(
                "insert into vm.host (id, subnet, gateway, incarnation, vmm, version, cpus_offered, cpus_limit, \
                    memory_offered, memory_limit, disk_offered, disk_limit) \
                 values ($1, $2::text::cidr, host($2::text::cidr)::inet + 1, $3, 'load', '0', 1000000, 1000000, \
                    1000000000, 1000000000, 1000000000, 1000000000)",
                &[&host.as_str(), &subnet, &Uuid::now_v7()],
            )
            .await?;
            sql.execute(
                "insert into vm.lease (address, host_id) \
                 select host($2::text::cidr)::inet + n, $1 from generate_series(2, 65534) n",
                &[&host.as_str(), &subnet],
            )
            .await?;
            sql.execute(
                "insert into image.replica (image_id, host_id) values ($1, $2)",
                &[&self.image.0, &host.as_str()],
            )
            .await?;
        }
        Ok(sql.batch_execute("vacuum analyze").await?)
    }

    /// A fresh copy: its name and how to connect to it.
    ///
    /// # Errors
    /// The server does not let us.
    pub async fn copy(&self, run: usize) -> anyhow::Result<(String, String)> {
        let name = format!("{}_{run}", self.name);
        let admin = connect(&self.server).await?;
        admin.batch_execute(&format!("create database {name} template {}", self.name)).await?;
        admin.batch_execute("checkpoint").await.context("a checkpoint before the run needs the right to make one")?;
        let url = with_database(&self.server, &name)?;
        Ok((name, url))
    }

    /// Drops a copy.
    ///
    /// # Errors
    /// The server does not let us.
    pub async fn drop_copy(&self, name: &str) -> anyhow::Result<()> {
        let admin = connect(&self.server).await?;
        Ok(admin.batch_execute(&format!("drop database if exists {name} with (force)")).await?)
    }

    /// Drops the template.
    ///
    /// # Errors
    /// The server does not let us.
    pub async fn drop_it(&self) -> anyhow::Result<()> {
        self.drop_copy(&self.name).await
    }
}

/// How many VMs a copy holds: what a run really did.
///
/// # Errors
/// The database cannot be reached.
pub async fn vms(url: &str) -> anyhow::Result<u64> {
    let sql = connect(url).await?;
    let held: i64 = sql.query_one("select count(*) from vm.vm v join vm.lease l on l.vm_id = v.id", &[]).await?.get(0);
    Ok(u64::try_from(held)?)
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn the_database_of_a_url_is_replaced() {
        for (url, want) in [
            ("host=/tmp user=w dbname=postgres", "host=/tmp user=w dbname=postgres dbname=x"),
            ("postgres://u:p@h:5432/postgres", "postgres://u:p@h:5432/x"),
            ("postgres://h", "postgres://h/x"),
            ("postgresql:///lab?host=/run/pg", "postgresql:///x?host=/run/pg"),
        ] {
            assert_eq!(with_database(url, "x").unwrap(), want);
        }
    }
}
