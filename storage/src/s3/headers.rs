//! What several kinds of requests carry alike. The SDK's builders have no type in common, so these are macros.

/// A file's time, metadata, storage class and encryption, for what creates an object.
macro_rules! with_common_headers {
    ($request:expr, $settings:expr, $options:expr) => {{
        let settings = $settings;
        let mut request = $request.set_storage_class(settings.storage_class.clone());
        if let Some(time) = $options.time {
            request = request.metadata(TIME, keys::format_time(time));
        }
        for (key, value) in $options.metadata {
            request = request.metadata(*key, *value);
        }
        if let Some(key) = &settings.kms_key_id {
            request = request.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(key);
        }
        with_customer_key!(request, settings)
    }};
}

/// The customer's key, for what reads or writes an object's bytes.
macro_rules! with_customer_key {
    ($request:expr, $settings:expr) => {{
        let mut request = $request;
        if let Some(key) = &$settings.customer_key {
            request = request
                .sse_customer_algorithm(&key.algorithm)
                .sse_customer_key(&key.key)
                .sse_customer_key_md5(&key.md5);
        }
        request
    }};
}
