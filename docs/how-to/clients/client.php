<?php

// Asks a service for predictions: rows as JSON on stdin, a list a line; predictions as JSON on stdout.
//
//     echo '[{"x": 1.0, "y": 0.5}, {"x": null, "y": 0.25}]' | php client.php http://127.0.0.1:8080

declare(strict_types=1);

/** An answer other than 200, or none at all (status 0). */
final class Refused extends RuntimeException
{
    /**
     * @param string $errorCode error_code, such as BAD_REQUEST
     * @param string $requestId by which the service's log has this request
     * @param int    $retryAfter seconds to wait before asking again; 0 where that does not help
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

/** Asks one service. Keep the object as long as the process lives: it keeps its connection. */
final class Predictions
{
    private readonly CurlHandle $curl;

    /** @param float $timeout seconds of one attempt. PHP's own max_execution_time does not count while it waits. */
    public function __construct(private readonly string $url, private readonly float $timeout = 5.0, private readonly int $attempts = 3)
    {
        $this->curl = curl_init();
    }

    /**
     * All rows in one request. It asks again on 429, 503, 504 and lost connections, since predicting twice does no harm.
     *
     * @param list<array<string, mixed>> $rows columns by name. null is NaN in a column of floats.
     * @return list<array<string, mixed>> one for each row; null where the model's answer was not a number
     * @throws Refused
     * @throws JsonException for NAN and INF among the rows: send null
     */
    public function predict(array $rows): array
    {
        // PRESERVE_ZERO_FRACTION: else 1.0 is sent as 1, which a column of strings would take for another text.
        $body = json_encode(['dataframe_records' => $rows], JSON_THROW_ON_ERROR | JSON_PRESERVE_ZERO_FRACTION);
        for ($attempt = 1; ; $attempt++) {
            try {
                return $this->once($body);
            } catch (Refused $refused) {
                if ($refused->retryAfter === 0 || $attempt >= $this->attempts) {
                    throw $refused;
                }
                sleep($refused->retryAfter);
            }
        }
    }

    private function once(string $body): array
    {
        $headers = [];
        curl_setopt_array($this->curl, [
            CURLOPT_URL => $this->url . '/invocations',
            CURLOPT_POSTFIELDS => $body,
            // Expect: or curl waits a second for "100 Continue" before it sends a large body.
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
        $answer = curl_exec($this->curl);
        if ($answer === false) {
            throw new Refused(0, '', curl_error($this->curl), '', 1);
        }
        $status = curl_getinfo($this->curl, CURLINFO_RESPONSE_CODE);
        if ($status !== 200) {
            $said = json_decode($answer, true); // null: 415 is a plain sentence, and a proxy in between answers as it likes
            $retry = in_array($status, [429, 503, 504], true) ? max(1, min(60, (int) ($headers['retry-after'] ?? 1))) : 0;
            throw new Refused($status, $said['error_code'] ?? '', $said['message'] ?? $answer, $headers['x-request-id'] ?? '', $retry);
        }
        return json_decode($answer, true, flags: JSON_THROW_ON_ERROR)['predictions'];
    }
}

$predictions = new Predictions($argv[1]);
while (($line = fgets(STDIN)) !== false) {
    try {
        $answers = $predictions->predict(json_decode($line, true, flags: JSON_THROW_ON_ERROR));
        echo json_encode($answers, JSON_THROW_ON_ERROR | JSON_PRESERVE_ZERO_FRACTION), "\n";
    } catch (Refused $refused) {
        fwrite(STDERR, "{$refused->status} {$refused->errorCode}: {$refused->getMessage()} (request {$refused->requestId})\n");
        exit(1);
    }
}
