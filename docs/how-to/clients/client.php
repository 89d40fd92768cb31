<?php

// Asks a service for predictions: rows as JSON on stdin, one list per line; predictions as JSON on stdout.
//
//     echo '[{"x": 1.0, "y": 0.5}, {"x": null, "y": 0.25}]' | php client.php http://127.0.0.1:8080

declare(strict_types=1);

/** A response with a status other than 200, or no response (status 0). */
final class Refused extends RuntimeException
{
    /**
     * @param string $errorCode error_code, such as BAD_REQUEST
     * @param string $requestId the ID of this request in the service's log
     * @param int    $retryAfter seconds to wait before a retry; 0 if a retry does not help
     */
    public function __construct(
        public readonly int $status,
        public readonly string $errorCode,
        string $message,
        public readonly string $requestId,
        public readonly int $retryAfter,
    ) {
        parent::__construct($message);
    }
}

/** Sends requests to one service. Use one object for the whole process: it keeps its connection. */
final class Predictions
{
    private readonly CurlHandle $curl;

    /** @param float $timeout seconds for one attempt. PHP's own max_execution_time does not count the waiting. */
    public function __construct(private readonly string $url, private readonly float $timeout = 5.0, private readonly int $attempts = 3)
    {
        $this->curl = curl_init();
    }

    /**
     * Sends all rows in one request. Retries on 429, 503, 504 and lost connections, which is safe because a prediction changes nothing.
     *
     * @param list<array<string, mixed>> $rows columns by name. null is NaN in a column of floats.
     * @return list<array<string, mixed>> one for each row; null if the model's output was not a number
     * @throws Refused
     * @throws JsonException if the rows contain NAN or INF; send null
     */
    public function predict(array $rows): array
    {
        // Without PRESERVE_ZERO_FRACTION, 1.0 is sent as 1, which is another text in a column of strings.
        $body = json_encode(['dataframe_records' => $rows], JSON_THROW_ON_ERROR | JSON_PRESERVE_ZERO_FRACTION);
        for ($attempt = 1; ; $attempt++) {
            try {
                return $this->attempt($body);
            } catch (Refused $refused) {
                if ($refused->retryAfter === 0 || $attempt >= $this->attempts) {
                    throw $refused;
                }
                sleep($refused->retryAfter);
            }
        }
    }

    private function attempt(string $body): array
    {
        $headers = [];
        curl_setopt_array($this->curl, [
            CURLOPT_URL => $this->url . '/invocations',
            CURLOPT_POSTFIELDS => $body,
            // Without "Expect:", curl waits a second for "100 Continue" before it sends a large body.
            CURLOPT_HTTPHEADER => ['Content-Type: application/json', 'Expect:'],
            CURLOPT_RETURNTRANSFER => true,
            CURLOPT_CONNECTTIMEOUT_MS => 1000,
            CURLOPT_TIMEOUT_MS => (int) ($this->timeout * 1000),
            CURLOPT_HEADERFUNCTION => function (CurlHandle $curl, string $line) use (&$headers): int {
                [$name, $value] = explode(':', $line, 2) + [1 => ''];
                $headers[strtolower($name)] = trim($value);
                return strlen($line);
            },
        ]);
        $content = curl_exec($this->curl);
        if ($content === false) {
            throw new Refused(0, '', curl_error($this->curl), '', 1);
        }
        $status = curl_getinfo($this->curl, CURLINFO_RESPONSE_CODE);
        if ($status !== 200) {
            $document = json_decode($content, true); // null: 415, and errors of a proxy, are not JSON
            $retry = in_array($status, [429, 503, 504], true) ? max(1, min(60, (int) ($headers['retry-after'] ?? 1))) : 0;
            throw new Refused($status, $document['error_code'] ?? '', $document['message'] ?? $content, $headers['x-request-id'] ?? '', $retry);
        }
        return json_decode($content, true, flags: JSON_THROW_ON_ERROR)['predictions'];
    }
}

$predictions = new Predictions($argv[1]);
while (($line = fgets(STDIN)) !== false) {
    try {
        $results = $predictions->predict(json_decode($line, true, flags: JSON_THROW_ON_ERROR));
        echo json_encode($results, JSON_THROW_ON_ERROR | JSON_PRESERVE_ZERO_FRACTION), "\n";
    } catch (Refused $refused) {
        fwrite(STDERR, "{$refused->status} {$refused->errorCode}: {$refused->getMessage()} (request {$refused->requestId})\n");
        exit(1);
    }
}
