//! The `file:` URI under which SQLite opens a replica through the VFS. It holds credentials: never show it.

use litestream_storage::config::{Location, ReplicaConfig, S3Config, Secret};
use urlencoding::encode;

/// The URI for a replica, with further parameters of the VFS. `name` is what the database is called in SQLite's own listings.
pub(crate) fn uri(replica: &ReplicaConfig, name: &str, parameters: &[(&str, String)]) -> String {
    // Everything encoded, slashes too: a name that began with `//` would be a host's.
    let mut uri = format!("file:{}?vfs={}", encode(name), litestream_vfs::VFS_NAME);
    uri.push_str(&format!("&replica_url={}", encode(&url(replica))));
    // There is one connection, whose name shall be shown as it was given.
    uri.push_str("&cache=private");
    for (key, value) in parameters {
        uri.push_str(&format!("&{key}={}", encode(value)));
    }
    if std::env::var_os("LITESTREAM_OPEN_TIMEOUT").is_none() {
        // Somebody waits at the keyboard: an empty replica is more likely a mistake than a beginning.
        uri.push_str("&open_timeout=0s");
    }
    uri
}

/// The URL with all that is stated, credentials included.
fn url(replica: &ReplicaConfig) -> String {
    match &replica.location {
        Location::S3(s3) => s3_url(replica.url(), s3),
        Location::File(file) => {
            let path = std::path::absolute(&file.path).unwrap_or_else(|_| file.path.clone());
            ReplicaConfig { location: Location::File(litestream_storage::config::FileConfig { path }) }.url()
        }
        _ => replica.url(),
    }
}

fn s3_url(mut url: String, s3: &S3Config) -> String {
    // Named one by one, so that a new key cannot be forgotten here.
    let S3Config {
        // These are in the URL.
        bucket: _,
        path: _,
        region: _,
        endpoint: _,
        force_path_style: _,
        written_path,
        skip_verify,
        sign_payload,
        require_content_md5,
        sign_accept_encoding,
        storage_class,
        part_size,
        concurrency,
        sse_customer_algorithm,
        sse_customer_key,
        sse_customer_key_path,
        sse_kms_key_id,
        access_key_id,
        secret_access_key,
    } = s3;
    let stated = [
        ("path", written_path.clone()),
        ("skip-verify", skip_verify.map(|value| value.to_string())),
        ("sign-payload", sign_payload.map(|value| value.to_string())),
        ("require-content-md5", require_content_md5.map(|value| value.to_string())),
        ("sign-accept-encoding", sign_accept_encoding.map(|value| value.to_string())),
        ("storage-class", storage_class.clone()),
        ("part-size", part_size.map(|value| value.to_string())),
        ("concurrency", concurrency.map(|value| value.to_string())),
        ("sse-customer-algorithm", sse_customer_algorithm.clone()),
        ("sse-customer-key", exposed(sse_customer_key)),
        ("sse-customer-key-path", sse_customer_key_path.as_ref().map(|path| path.display().to_string())),
        ("sse-kms-key-id", sse_kms_key_id.clone()),
        ("access-key-id", access_key_id.clone()),
        ("secret-access-key", exposed(secret_access_key)),
    ];
    for (key, value) in stated {
        if let Some(value) = value {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{key}={}", encode(&value)));
        }
    }
    url
}

fn exposed(secret: &Option<Secret>) -> Option<String> {
    secret.as_ref().map(|secret| secret.expose().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_comes_back_from_its_url_with_everything() {
        for given in [
            "s3://b",
            "s3://b/a%20b/%C3%BC?endpoint=localhost:9000&accessKeyId=AK%2B/=&secretAccessKey=s%26c%3Fr%25%2B",
            "s3://b/x?skipVerify=true&signPayload=false&requireContentMD5=true&signAcceptEncoding=false&storageClass=X\
             &partSize=64MiB&concurrency=3&sseCustomerKey=a%2Bb%3D&region=eu&forcePathStyle=true",
            "s3://b/x?sseCustomerKeyPath=/k%20y&sseCustomerAlgorithm=AES256",
            "s3://b/x/y?path=/x/y/",
            "s3://b/x?sseKmsKeyId=arn:aws:kms:x",
            "file:///a%20b/c%3Fd",
        ] {
            let replica = ReplicaConfig::from_url(given).unwrap();
            assert_eq!(ReplicaConfig::from_url(&url(&replica)).unwrap(), replica, "{given}");
        }
    }

    #[test]
    fn the_uri_is_one_whatever_the_names() {
        let replica =
            ReplicaConfig::from_url("file:///a&b?").unwrap_or_else(|_| ReplicaConfig::from_url("/a&b").unwrap());
        let uri = uri(&replica, "/x y?z#.db", &[("at", "5 minutes ago".to_owned())]);
        assert!(uri.starts_with("file:%2Fx%20y%3Fz%23.db?vfs=litestream&replica_url=file%3A%2F%2F%2Fa"), "{uri}");
        assert_eq!((uri.matches('?').count(), uri.matches('#').count()), (1, 0));
        assert!(uri.contains("&at=5%20minutes%20ago"));
    }
}
